//! Puts the measured part into a document, and leaves the rest of the document as it is.

use std::fs;
use std::path::Path;

use crate::failure::{Failure, While};
use crate::table::Table;

const BEGIN: &str = "<!-- measured: written by `make bench`, not by hand -->\n";
const END: &str = "<!-- end of measured -->\n";

pub(crate) fn write(document: &Path, facts: &str, table: &Table, runs: u32) -> Result<(), Failure> {
    let text = fs::read_to_string(document).during(|| format!("read {}", document.display()))?;
    let measured = format!(
        "\n{facts}\nMedians of {runs} runs, with the least and the most.\n\n{}\n",
        table.markdown()
    );
    let text = replace(&text, &measured).ok_or_else(|| {
        Failure::new(format!(
            "{} lacks the marks that the table goes between",
            document.display()
        ))
    })?;
    fs::write(document, text).during(|| format!("write {}", document.display()))
}

fn replace(text: &str, measured: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some([before, BEGIN, measured, END, after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("# Title\n{BEGIN}old\n{END}\nWhy.\n");
        assert_eq!(
            replace(&text, "new\n"),
            Some(format!("# Title\n{BEGIN}new\n{END}\nWhy.\n"))
        );
        assert_eq!(replace("# Title\n", "new\n"), None);
    }
}
