//! Modules look downward only: the layers that ARCHITECTURE.md draws are those of the code.
//!
//! The document has a block of layers for each crate that has any. Each line is a layer, the top
//! one first; a layer's modules do not use each other, and use only what is in the lines below.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{read, repository, rust_files, shown};

/// The heading in front of a block of layers: the directory stands between the backquotes.
const HEADING: &str = "Layers of `";

/// Modules by layer, from the top.
type Layers = Vec<Vec<String>>;

/// All blocks of layers in ARCHITECTURE.md, with their directories.
fn documented() -> Vec<(String, Layers)> {
    let text = read(&repository().join("ARCHITECTURE.md"));
    let mut lines = text.lines().peekable();
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once(HEADING) else {
            continue;
        };
        let (dir, _) = rest.split_once('`').expect("a closing backquote");
        while lines.next_if(|line| !line.starts_with("    ")).is_some() {}
        let mut layers = Layers::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("    ")) {
            layers.push(line.split_whitespace().map(str::to_owned).collect());
        }
        blocks.push((dir.to_owned(), layers));
    }
    blocks
}

/// The code of a file that is shipped: without comments, and without the tests at its end.
fn shipped_code(text: &str) -> String {
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    match code.find("#[cfg(test)]\nmod tests {") {
        Some(at) => code[..at].to_owned(),
        None => code,
    }
}

/// Where a file stands in the tree of modules below `dir`: `a/b.rs` and `a/b/mod.rs` are `[a, b]`.
fn module_path(dir: &Path, file: &Path) -> Vec<String> {
    let mut path: Vec<_> = file
        .strip_prefix(dir)
        .unwrap()
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

fn identifiers(path: &str) -> Vec<String> {
    path.split("::")
        .map(|part| {
            part.trim()
                .chars()
                .take_while(|character| character.is_alphanumeric() || *character == '_')
                .collect()
        })
        .take_while(|part: &String| !part.is_empty())
        .collect()
}

/// The paths that begin at a `crate::` or `super::`; of a group in braces, each one.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "_:$".contains(before)) {
                continue;
            }
            found.extend(expanded(&code[at..]));
        }
    }
    found
}

/// A path, or all paths of a group, as far as needed: two names behind the last `super`.
fn expanded(code: &str) -> Vec<Vec<String>> {
    let end = code
        .find(|character: char| {
            !(character.is_alphanumeric() || character == '_' || character == ':')
        })
        .unwrap_or(code.len());
    let head = identifiers(&code[..end]);
    let Some(group) = code[..end]
        .ends_with("::")
        .then(|| code[end..].strip_prefix('{'))
        .flatten()
    else {
        return vec![head];
    };
    let mut depth = 1;
    let mut items = vec![String::new()];
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        items.last_mut().unwrap().push(character);
    }
    items
        .iter()
        .map(|item| [head.clone(), identifiers(item.trim())].concat())
        .collect()
}

/// The module directly below the crate's root that a path leads to, if it leads out of a file's
/// own one.
fn target(module: &[String], path: &[String]) -> Option<String> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    if path.first().is_some_and(|first| first == "crate") {
        return path.get(1).cloned();
    }
    // `super` of a module directly below the root is the root.
    (ups >= module.len())
        .then(|| path.get(ups).cloned())
        .flatten()
}

/// The names that a crate's root exports, with the modules that they are from.
fn given_on(dir: &Path) -> BTreeMap<String, String> {
    let root = shipped_code(&read(&dir.join("lib.rs")));
    let mut names = BTreeMap::new();
    for (at, _) in root.match_indices("use ") {
        for path in expanded(&root[at + "use ".len()..]) {
            if let [module, .., name] = path.as_slice() {
                names.insert(name.clone(), module.clone());
            }
        }
    }
    names
}

/// The uses between modules, with one file for each pair.
fn uses(dir: &Path) -> BTreeMap<(String, String), PathBuf> {
    let mut uses = BTreeMap::new();
    let given_on = given_on(dir);
    let files = rust_files()
        .into_iter()
        .filter(|file| file.starts_with(dir))
        .filter(|file| !file.ends_with("tests.rs") && !shown(file).contains("/tests/"));
    for file in files {
        let module = module_path(dir, &file);
        let [top, ..] = module.as_slice() else {
            continue;
        };
        if matches!(top.as_str(), "lib" | "main") {
            continue;
        }
        for path in paths(&shipped_code(&read(&file))) {
            let Some(used) = target(&module, &path) else {
                continue;
            };
            let used = given_on.get(&used).cloned().unwrap_or(used);
            if used != *top {
                uses.entry((top.clone(), used))
                    .or_insert_with(|| file.clone());
            }
        }
    }
    uses
}

/// The modules directly below a crate's root.
fn modules_of(dir: &Path) -> BTreeSet<String> {
    rust_files()
        .into_iter()
        .filter(|file| file.starts_with(dir))
        .filter_map(|file| module_path(dir, &file).first().cloned())
        .filter(|module| !matches!(module.as_str(), "lib" | "main" | "tests" | "testing"))
        .collect()
}

#[test]
fn modules_look_downward_only() {
    let blocks = documented();
    assert!(!blocks.is_empty(), "ARCHITECTURE.md draws no layers");
    let mut faults = Vec::new();
    for (name, layers) in blocks {
        let dir = repository().join(&name);
        let modules = modules_of(&dir);
        let rank: BTreeMap<_, _> = layers
            .iter()
            .enumerate()
            .flat_map(|(rank, layer)| layer.iter().map(move |module| (module.clone(), rank)))
            .collect();
        for module in rank.keys().filter(|module| !modules.contains(*module)) {
            faults.push(format!("{name}: the layer of {module} has no files"));
        }
        for module in modules.iter().filter(|module| !rank.contains_key(*module)) {
            faults.push(format!("{name}/{module} is in no layer of ARCHITECTURE.md"));
        }
        for ((from, to), file) in uses(&dir) {
            // Not a module: a macro, or a name of another crate.
            let (Some(from_rank), Some(to_rank)) = (rank.get(&from), rank.get(&to)) else {
                continue;
            };
            if to_rank <= from_rank {
                let file = shown(&file);
                faults.push(format!("{file}: {from} uses {to}, which is not below it"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn paths_are_found_in_all_their_forms() {
    let code = "use crate::{\n    Error, io::{Disk, File},\n    pack,\n};\n\
                use super::super::{meta::Batch, x};\nfn f() { crate::limits::MAX; $crate::no }";
    let found = paths(code);
    let expected: &[&[&str]] = &[
        &["crate", "Error"],
        &["crate", "io"],
        &["crate", "pack"],
        &["super", "super", "meta", "Batch"],
        &["super", "super", "x"],
        &["crate", "limits", "MAX"],
    ];
    for path in expected {
        assert!(
            found.iter().any(|found| found == path),
            "{path:?} is not in {found:?}"
        );
    }
    let module = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let to = |from: &str, path: &str| target(&module(from), &identifiers(path));
    assert_eq!(
        to("read/fetch", "super::super::meta"),
        Some("meta".to_owned())
    );
    assert_eq!(to("read/fetch", "super::cache"), None);
    assert_eq!(to("commit", "super::meta"), Some("meta".to_owned()));
    assert_eq!(
        to("read/fetch", "crate::meta::Batch"),
        Some("meta".to_owned())
    );
}
