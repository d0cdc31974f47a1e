#!/usr/bin/env bash
# Makes three RDMA devices in the virtual machine. The packets between rxa and rxb really cross a wire (a veth pair), so
# that it can be cut, slowed and made to lose; rxc reaches only itself, and so goes on when the wire is cut. Sourced by
# the job, as root of the guest.
#
# Both ends of the pair are in one network namespace, because rxe's UDP port exists in the first one only; so it takes
# routing by policy to keep packets between two local addresses from going over `lo`, where rxe drops them.
set -e
ip link set lo up
ip link add va type veth peer name vb
for i in all va vb; do
    echo 1 >/proc/sys/net/ipv4/conf/$i/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter
    echo 0 >/proc/sys/net/ipv4/conf/$i/arp_ignore
done
ip addr add 10.9.0.1/32 dev va
ip addr add 10.9.0.2/32 dev vb
ip link set va mtu 4200 up
ip link set vb mtu 4200 up
ip route add 10.9.0.2/32 dev va src 10.9.0.1 table 101
ip route add 10.9.0.1/32 dev vb src 10.9.0.2 table 102
ip rule add pref 1 iif va lookup local
ip rule add pref 2 iif vb lookup local
ip rule add pref 10 from 10.9.0.1 to 10.9.0.2 lookup 101
ip rule add pref 11 from 10.9.0.2 to 10.9.0.1 lookup 102
# The new rule before the old one goes, or `lo` is cut off in between.
ip rule add pref 100 lookup local
ip rule del pref 0
ip neigh add 10.9.0.2 lladdr "$(cat /sys/class/net/vb/address)" dev va nud permanent
ip neigh add 10.9.0.1 lladdr "$(cat /sys/class/net/va/address)" dev vb nud permanent
rdma link add rxa type rxe netdev va
rdma link add rxb type rxe netdev vb
ip link add du0 type dummy
ip addr add 192.0.2.1/24 dev du0
ip link set du0 mtu 4200 up
rdma link add rxc type rxe netdev du0
set +e
