//! The committed corpus: a folder for each target, a small file for each input.
//!
//! Most files are written by [`write()`], from the golden vectors and from what is made by hand in
//! `seeds`. Files that are there besides are inputs that once broke something; they stay.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::seeds;

/// The target's folder.
pub fn folder(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus")).join(target)
}

/// The target's inputs, in the order of their files' names.
///
/// # Errors
///
/// What the operating system says; a target without a folder is an error.
pub fn read(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let files = fs::read_dir(folder(target))?.map(|file| Ok(file?.path()));
    let mut files = files.collect::<io::Result<Vec<_>>>()?;
    files.sort();
    files.into_iter().map(fs::read).collect()
}

/// Writes the files that are made, and leaves the others alone. How many those are.
///
/// # Errors
///
/// What the operating system says.
pub fn write() -> io::Result<usize> {
    let seeds = seeds::all();
    for seed in &seeds {
        fs::create_dir_all(folder(seed.target))?;
        fs::write(folder(seed.target).join(&seed.name), &seed.bytes)?;
    }
    Ok(seeds.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TARGETS;
    use std::collections::HashSet;

    #[test]
    fn what_is_made_is_committed_and_each_input_has_a_name_of_its_own() {
        let mut names = HashSet::new();
        for seed in seeds::all() {
            let file = folder(seed.target).join(&seed.name);
            assert_eq!(fs::read(&file).ok(), Some(seed.bytes), "write {} anew", file.display());
            assert!(names.insert(file));
        }
    }

    #[test]
    fn the_corpus_is_small() {
        let inputs: Vec<_> = TARGETS.iter().flat_map(|target| read(target.name).unwrap()).collect();
        assert!(inputs.len() < 350, "{} files", inputs.len());
        assert!(inputs.iter().all(|input| input.len() <= 4096));
    }
}
