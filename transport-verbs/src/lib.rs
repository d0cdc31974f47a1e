//! RDMA fabric of a KV-cache transport.
