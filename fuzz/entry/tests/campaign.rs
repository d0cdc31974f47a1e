//! Every target over its corpus and mutations of it: `FUZZ_ITERATIONS` of them, from `FUZZ_SEED`.

use fuzz_entry::campaign::Campaign;
use fuzz_entry::{TARGETS, corpus, target};

/// A test for each target, so that they run beside each other and fail by name.
macro_rules! targets {
    ($names:ident = $($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        const $names: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! { NAMES =
    address aux bodies config directory etcd gpu_address gpu_chunks gpu_control gpu_regions lane link nearby
    preface proof query requests topology trace wire
}

#[cfg(feature = "verbs")]
targets! { VERBS = verbs_address verbs_control verbs_news verbs_tables }
#[cfg(not(feature = "verbs"))]
const VERBS: &[&str] = &[];

fn run(name: &str) {
    let corpus = corpus::read(name).unwrap();
    assert!(corpus.len() > 1, "{name} has no corpus to speak of");
    let outcome = Campaign::from_env().run(target(name).unwrap(), &corpus);
    outcome.unwrap_or_else(|finding| panic!("{finding}"));
}

#[test]
fn every_target_is_run_here_and_by_cargo_fuzz() {
    let names = [NAMES, VERBS].concat();
    assert_eq!(TARGETS.map(|target| target.name)[..], names);
    let manifest = include_str!("../../Cargo.toml");
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let file = format!("{}/../fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("fuzz_entry::{name}(data)")), "{name}");
    }
}
