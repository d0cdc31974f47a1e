//! Which GPUs and RDMA devices this machine has, how far apart they are on its PCIe tree, and which
//! NIC each GPU should use. From sysfs alone: no driver of either is needed.
//!
//! In sysfs a PCI device is a folder within those of the bridges above it, up to its root complex:
//! `/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0`. So the way between two devices goes through
//! what their paths do not share.

use std::fs;
use std::path::{Path, PathBuf};

/// How far two devices are apart, the nearest first. The words are those of `nvidia-smi topo`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Distance {
    /// PIX, PXB: only PCIe switches are between them, so many bridges. Traffic does not touch the
    /// processor.
    Switches(u32),
    /// PHB: through a root complex.
    RootComplex,
    /// NODE: between root complexes of one NUMA node.
    Node,
    /// SYS: between NUMA nodes, or nobody knows.
    System,
}

/// A GPU or an RDMA device on the PCIe tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The name of an RDMA device; the address of a GPU.
    pub name: String,
    /// Domain, bus, device and function, as in `0000:3b:00.0`.
    pub address: String,
    /// Its NUMA node, if the system says.
    pub numa: Option<u32>,
    /// The folders from the root complex to the device.
    path: Vec<String>,
}

/// The machine's GPUs and RDMA devices.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PciTopology {
    /// GPUs of NVIDIA, by address: the order in which CUDA counts them with
    /// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub gpus: Vec<Place>,
    /// RDMA devices, by name.
    pub nics: Vec<Place>,
}

/// The PCI vendor.
const NVIDIA: &str = "0x10de";
/// PCI classes of display controllers: with a screen, 3D.
const GPU_CLASSES: [&str; 2] = ["0x0300", "0x0302"];

impl PciTopology {
    /// Of this machine. Empty where there is no sysfs.
    pub fn read() -> Self {
        Self::under(Path::new("/sys"))
    }

    /// Of the tree at `sys`, which looks like `/sys`.
    pub fn under(sys: &Path) -> Self {
        let gpus = entries(&sys.join("bus/pci/devices")).into_iter().filter(|at| is_gpu(at));
        let mut gpus: Vec<_> = gpus.filter_map(|at| Place::at(&at, None)).collect();
        let nics = entries(&sys.join("class/infiniband")).into_iter();
        let nic = |at: PathBuf| Place::at(&at.join("device"), at.file_name()?.to_str());
        let mut nics: Vec<_> = nics.filter_map(nic).collect();
        gpus.sort_by(|a, b| a.address.cmp(&b.address));
        nics.sort_by(|a, b| a.name.cmp(&b.name));
        Self { gpus, nics }
    }

    /// The NIC that each GPU should use, by index, in the order of the GPUs: the nearest; of several
    /// as near, the one that fewest GPUs before it use. `None` when there is no RDMA device.
    pub fn preferred(&self) -> Vec<Option<usize>> {
        let mut users = vec![0u32; self.nics.len()];
        let choose = |gpu: &Place| {
            let nics = self.nics.iter().enumerate();
            let best = nics.min_by_key(|(index, nic)| (gpu.distance(nic), users[*index]))?.0;
            users[best] += 1;
            Some(best)
        };
        self.gpus.iter().map(choose).collect()
    }
}

impl Place {
    fn at(device: &Path, name: Option<&str>) -> Option<Self> {
        let real = fs::canonicalize(device).ok()?;
        let parts = real.iter().map(|part| part.to_str().unwrap_or(""));
        let path: Vec<String> =
            parts.skip_while(|part| !is_root(part)).map(str::to_owned).collect();
        let address = path.last()?.clone();
        // Below zero means that the system does not know.
        let numa = text(&real.join("numa_node")).and_then(|node| node.parse().ok());
        Some(Self { name: name.unwrap_or(&address).to_owned(), address, numa, path })
    }

    /// How far it is from another.
    pub fn distance(&self, other: &Self) -> Distance {
        let shared = self.path.iter().zip(&other.path).take_while(|(a, b)| a == b).count();
        match shared {
            0 => match (self.numa, other.numa) {
                (Some(here), Some(there)) if here == there => Distance::Node,
                _ => Distance::System,
            },
            // The root complex is the first folder.
            1 => Distance::RootComplex,
            _ => {
                let below = |path: &[String]| path.len().saturating_sub(shared + 1);
                Distance::Switches((below(&self.path) + below(&other.path)) as u32)
            }
        }
    }
}

impl std::fmt::Display for Distance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Switches(bridges) => write!(f, "PCIe switches, {bridges} bridges"),
            Self::RootComplex => f.write_str("a root complex"),
            Self::Node => f.write_str("one NUMA node"),
            Self::System => f.write_str("between NUMA nodes"),
        }
    }
}

/// Whether a folder is a root complex's: `pci`, domain and bus.
fn is_root(folder: &str) -> bool {
    folder.starts_with("pci") && folder.contains(':')
}

fn is_gpu(device: &Path) -> bool {
    let class = text(&device.join("class")).unwrap_or_default();
    let display = class.get(..6).is_some_and(|class| GPU_CLASSES.contains(&class));
    display && text(&device.join("vendor")).is_some_and(|vendor| vendor == NVIDIA)
}

/// A file's text, without blanks at its ends.
fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A made-up `/sys`, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            ["bus/pci/devices", "class/infiniband"]
                .iter()
                .for_each(|folder| fs::create_dir_all(root.join(folder)).unwrap());
            Self(root)
        }

        fn device(&self, path: &str, (vendor, class): (&str, &str), numa: i32) -> PathBuf {
            let device = self.0.join("devices").join(path);
            fs::create_dir_all(&device).unwrap();
            for (file, text) in
                [("vendor", vendor), ("class", class), ("numa_node", &numa.to_string())]
            {
                fs::write(device.join(file), format!("{text}\n")).unwrap();
            }
            let address = device.file_name().unwrap();
            symlink(&device, self.0.join("bus/pci/devices").join(address)).unwrap();
            device
        }

        fn gpu(&self, path: &str, numa: i32) {
            self.device(path, ("0x10de", "0x030200"), numa);
        }

        fn nic(&self, name: &str, path: &str, numa: i32) {
            let device = self.device(path, ("0x15b3", "0x020700"), numa);
            let entry = self.0.join("class/infiniband").join(name);
            fs::create_dir(&entry).unwrap();
            symlink(device, entry.join("device")).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Two sockets. On the first, a switch with two GPUs and two NICs, and a NIC at another port of the
    /// same root complex; on the second, a GPU at a root port of its own, and a NIC elsewhere.
    fn server(test: &str) -> Tree {
        let tree = Tree::new(test);
        let switch = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
        tree.gpu(&format!("{switch}/0000:3c:00.0/0000:3d:00.0"), 0);
        tree.gpu(&format!("{switch}/0000:3c:01.0/0000:3e:00.0"), 0);
        tree.nic("mlx5_0", &format!("{switch}/0000:3c:02.0/0000:3f:00.0"), 0);
        tree.nic("mlx5_1", &format!("{switch}/0000:3c:03.0/0000:40:00.0"), 0);
        tree.nic("mlx5_2", "pci0000:3a/0000:3a:01.0/0000:41:00.0", 0);
        tree.gpu("pci0000:ba/0000:ba:00.0/0000:bb:00.0", 1);
        tree.nic("mlx5_3", "pci0000:d0/0000:d0:00.0/0000:d1:00.0", 1);
        // What is neither: a bridge, a sound card of NVIDIA's, a GPU of somebody else's.
        tree.device("pci0000:00/0000:00:1f.0", ("0x8086", "0x060100"), 0);
        tree.device("pci0000:00/0000:00:02.0", ("0x10de", "0x040300"), 0);
        tree.device("pci0000:00/0000:00:03.0", ("0x1002", "0x030000"), -1);
        tree
    }

    #[test]
    fn distances_are_those_of_the_tree() {
        let tree = server("pci-distances");
        let PciTopology { gpus, nics } = PciTopology::under(&tree.0);
        let addresses: Vec<_> = gpus.iter().map(|gpu| &gpu.address[..]).collect();
        assert_eq!(addresses, ["0000:3d:00.0", "0000:3e:00.0", "0000:bb:00.0"]);
        let names: Vec<_> = nics.iter().map(|nic| &nic.name[..]).collect();
        assert_eq!(names, ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]);
        let from = |gpu: usize| nics.iter().map(|nic| gpus[gpu].distance(nic)).collect::<Vec<_>>();
        use Distance::{Node, RootComplex, Switches, System};
        assert_eq!(from(0), [Switches(2), Switches(2), RootComplex, System]);
        assert_eq!(from(2), [System, System, System, Node]);
        assert!(Switches(9) < RootComplex && RootComplex < Node && Node < System);
    }

    #[test]
    fn each_gpu_gets_the_nearest_nic_and_equals_are_shared_out() {
        let tree = server("pci-preferred");
        let topology = PciTopology::under(&tree.0);
        assert_eq!(topology.preferred(), [Some(0), Some(1), Some(3)]);
        let without = PciTopology { nics: vec![], ..topology };
        assert_eq!(without.preferred(), [None, None, None]);
    }

    #[test]
    fn a_machine_without_any_is_no_error() {
        assert_eq!(PciTopology::under(Path::new("/nowhere")), PciTopology::default());
        PciTopology::read();
    }
}
