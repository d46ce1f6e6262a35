//! 03-rfc8785-jcs: canonical forms of others, ECMAScript's numbers, and texts that are JSON or not.

use std::path::{Path, PathBuf};

use serde_json::{Number, Value};
use stella_attest::canonical;
use stella_attest::json::{self, JsonError, Limits};

use crate::support::{Run, folder, read, walk};

#[test]
fn canonical_forms_numbers_and_parse_files_are_as_stated() {
    let Some(root) = folder("03-rfc8785-jcs") else {
        return;
    };
    let mut run = Run::new("03-rfc8785-jcs");
    for file in walk(&root) {
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        if name.contains("test_parsing") {
            parse_file(&name, &file, &mut run);
        } else if name.starts_with("es6") {
            es6_lines(&name, &read(&file), &mut run);
        } else if name == "numbers.json" || name == "strings.json" {
            listed(&name, &read(&file), &mut run);
        } else if let Some(wanted) = wanted_of(&file) {
            pair(&name, &file, &wanted, &mut run);
        }
    }
    run.finish();
}

fn canonical_text(bytes: &[u8]) -> Result<String, JsonError> {
    let value = json::parse(bytes, &Limits::default())?;
    Ok(String::from_utf8(canonical::to_vec(&value)).expect("JSON is UTF-8"))
}

/// The files that hold the canonical form of an input file.
fn wanted_of(file: &Path) -> Option<Vec<PathBuf>> {
    let name = file.file_name()?.to_str()?;
    if let Some(stem) = name.strip_suffix(".input.json") {
        let beside = ["expected", "output"].map(|word| file.with_file_name(format!("{stem}.{word}.json")));
        return Some(beside.into_iter().filter(|file| file.exists()).collect());
    }
    let folder = file.parent()?;
    (folder.file_name()? == "input").then(|| {
        let output = folder.with_file_name("output").join(name);
        let hex = folder.with_file_name("outhex").join(name).with_extension("txt");
        [output, hex].into_iter().filter(|file| file.exists()).collect()
    })
}

fn pair(name: &str, input: &Path, wanted: &[PathBuf], run: &mut Run) {
    let found = canonical_text(&read(input)).unwrap_or_else(|error| error.to_string());
    run.expect(name, true, !wanted.is_empty());
    for file in wanted {
        let bytes = read(file);
        let wanted = match file.extension().is_some_and(|extension| extension == "txt") {
            true => {
                let digits: String = String::from_utf8(bytes).unwrap().split_whitespace().collect();
                hex::decode(digits).unwrap()
            }
            false => bytes,
        };
        run.expect_text(
            name,
            String::from_utf8(wanted).unwrap().trim_end_matches('\n'),
            &found,
        );
    }
}

fn number_text(double: f64) -> Option<String> {
    let number = Number::from_f64(double)?;
    Some(String::from_utf8(canonical::to_vec(&Value::Number(number))).expect("JSON is UTF-8"))
}

fn of_bits(hex: &str) -> f64 {
    f64::from_bits(u64::from_str_radix(hex, 16).unwrap())
}

fn es6_lines(name: &str, bytes: &[u8], run: &mut Run) {
    for line in std::str::from_utf8(bytes)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
    {
        let (bits, wanted) = line.split_once(',').unwrap();
        run.expect_text(name, wanted, &number_text(of_bits(bits)).unwrap_or_default());
    }
}

/// Lists of cases with the canonical text, or null for what must be refused.
fn listed(name: &str, bytes: &[u8], run: &mut Run) {
    let document: Value = serde_json::from_slice(bytes).unwrap();
    for case in document["cases"].as_array().unwrap() {
        let text = |member: &str| case[member].as_str();
        let (what, found) = if let Some(bits) = text("ieee754_hex") {
            (bits, number_text(of_bits(bits)))
        } else if let Some(literal) = text("integer_literal") {
            (literal, number_text(literal.parse().unwrap()))
        } else {
            let input = text("input_json").unwrap();
            (input, canonical_text(input.as_bytes()).ok())
        };
        let case_name = format!("{name}: {what}");
        run.expect_text(
            &case_name,
            text("expect").unwrap_or("refused"),
            found.as_deref().unwrap_or("refused"),
        );
    }
}

/// `y_` is JSON, `n_` is not, `i_` may be either. What RFC 7493 forbids beyond the grammar is refused by name.
fn parse_file(name: &str, file: &Path, run: &mut Run) {
    let parsed = json::parse(&read(file), &Limits::default());
    let file_name = file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    match (file_name.as_bytes(), parsed) {
        ([b'y', b'_', ..], Err(error @ JsonError::DuplicateKey { .. })) => run.skip(name, &error.to_string()),
        ([b'y', b'_', ..], parsed) => run.expect(name, true, parsed.is_ok()),
        ([b'n', b'_', ..], parsed) => run.expect(name, false, parsed.is_ok()),
        ([b'i', b'_', ..], Ok(value)) => {
            let again = canonical_text(&canonical::to_vec(&value));
            run.expect(name, true, again.is_ok());
        }
        ([b'i', b'_', ..], Err(error)) => run.expect(name, true, !error.reason().is_empty()),
        _ => run.skip(name, "not a case"),
    }
}
