//! Documents and comments: their paths and links exist, and their lines end at column 100.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{files, read, repository, rust_files, shown};

const COLUMNS_MAX: usize = 100;

fn documents() -> Vec<PathBuf> {
    files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// The lines of a document that are prose: outside of code and tables.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            return false;
        }
        !(is_fenced || line.starts_with("    ") || line.trim_start().starts_with('|'))
    })
}

/// The targets of links: `](target)`.
fn links(text: &str) -> Vec<&str> {
    text.match_indices("](")
        .filter_map(|(at, opening)| {
            let rest = &text[at + opening.len()..];
            rest.split_once(')').map(|(target, _)| target)
        })
        .collect()
}

/// The anchor that a heading has: lower case, spaces as hyphens, without punctuation.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            _ if character.is_alphanumeric() => Some(character),
            _ => None,
        })
        .collect()
}

fn leads_somewhere(document: &Path, text: &str, link: &str) -> bool {
    let (target, fragment) = match link.split_once('#') {
        Some((target, fragment)) => (target, Some(fragment)),
        None => (link, None),
    };
    let path = document.parent().unwrap().join(target);
    let target_text = match target {
        "" => text.to_owned(),
        _ if !path.exists() => return false,
        _ if fragment.is_some() => read(&path),
        _ => return true,
    };
    let mut headings = target_text.lines().filter(|line| line.starts_with('#'));
    fragment.is_none_or(|fragment| headings.any(|heading| anchor(heading) == fragment))
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut seen = 0;
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document);
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            seen += 1;
            if !leads_somewhere(&document, &text, link) {
                broken.push(format!("{}: {link}", shown(&document)));
            }
        }
    }
    assert!(seen > 50, "only {seen} links were found");
    assert!(broken.is_empty(), "these links lead nowhere: {broken:#?}");
}

/// Decisions describe the past, with the names of their time.
#[test]
fn paths_that_documents_name_exist() {
    let top: BTreeSet<_> = [
        "store", "daemon", "client", "proto", "tests", "benches", "docs", "scripts",
    ]
    .into();
    let mut seen = 0;
    let mut broken = Vec::new();
    for document in documents() {
        let name = shown(&document);
        if name.starts_with("docs/decisions/") {
            continue;
        }
        let text = read(&document);
        for path in text.split('`').skip(1).step_by(2) {
            let is_path = path.split_once('/').is_some_and(|(first, rest)| {
                top.contains(first) && !rest.contains([' ', '*', '<', '$'])
            });
            // A decision is named by its number.
            if !is_path || path.starts_with("docs/decisions/0") {
                continue;
            }
            seen += 1;
            if !repository().join(path).exists() {
                broken.push(format!("{name}: {path}"));
            }
        }
    }
    assert!(seen > 30, "only {seen} paths were found");
    assert!(broken.is_empty(), "these are not there: {broken:#?}");
}

#[test]
fn lines_of_prose_end_at_column_100() {
    let mut long = Vec::new();
    let mut add = |path: &Path, number: usize, line: &str| {
        if line.chars().count() > COLUMNS_MAX {
            long.push(format!("{}:{number}", shown(path)));
        }
    };
    for document in documents() {
        // The measurements are written by a program.
        let text = read(&document);
        let by_hand = text.split("<!-- measured").next().unwrap();
        for (number, line) in prose(by_hand) {
            add(&document, number, line);
        }
    }
    for file in rust_files() {
        for (number, line) in (1..).zip(read(&file).lines()) {
            let line_start = line.trim_start();
            let is_table = line_start.contains("//! |") || line_start.contains("/// |");
            let has_link = line.contains("://");
            if line_start.starts_with("//") && !is_table && !has_link {
                add(&file, number, line);
            }
        }
    }
    assert!(long.is_empty(), "these lines are longer: {long:#?}");
}
