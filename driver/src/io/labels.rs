//! Label files, class-name files and image folders.
//!
//! All problems of a file are reported at once, each with its line.

use super::{list_problems, read_bounded};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Largest label or class-name file.
pub const MAX_TEXT_BYTES: u64 = 64 << 20;

/// An image file and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The image's path.
    pub path: PathBuf,
    /// Index of its class.
    pub class: usize,
}

/// Reads `file class` lines and finds the files in `images`; files that are missing are listed all at once.
pub fn read_labels(labels: &Path, images: &Path) -> Result<Vec<Labelled>> {
    let context = || format!("label file '{}'", labels.display());
    let entries = parse_labels(&read_text(labels, "a label file")?).with_context(context)?;
    require_dir(images)?;
    let found: Vec<Labelled> =
        entries.into_iter().map(|(file, class)| Labelled { path: images.join(file), class }).collect();
    let missing: Vec<String> =
        found.iter().filter(|l| !l.path.is_file()).map(|l| l.path.display().to_string()).collect();
    if !missing.is_empty() {
        let (few, all, lines) = (missing.len(), found.len(), list_problems(&missing));
        bail!("{}: {few} of {all} images are missing; check the folder '{}':{lines}", context(), images.display());
    }
    Ok(found)
}

/// Parses `file class` lines; the file may hold spaces; blank lines and lines that start with `#` are skipped.
pub fn parse_labels(text: &str) -> Result<Vec<(String, usize)>> {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (number, line) in (1..).zip(lines(text)).filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
        match parse_label(line) {
            Ok((file, class)) => match seen.insert(file, number) {
                None => entries.push((file.to_owned(), class)),
                Some(first) => problems.push(format!("line {number}: '{file}' stands in line {first} already")),
            },
            Err(problem) => problems.push(format!("line {number}: {problem}")),
        }
    }
    ensure!(problems.is_empty(), "wants 'file class' per line, but:{}", list_problems(&problems));
    ensure!(!entries.is_empty(), "has no labels; write one 'file class' per line");
    Ok(entries)
}

fn parse_label(line: &str) -> Result<(&str, usize), String> {
    let (file, class) = line.rsplit_once(char::is_whitespace).ok_or_else(|| format!("'{line}' has no class"))?;
    let class = class.parse().map_err(|_| format!("'{class}' is not a class number (0, 1, 2, ...)"))?;
    Ok((file.trim_end(), class))
}

/// Reads the names of the classes, one per line; line 1 is class 0.
pub fn read_class_names(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path, "a class-name file")?;
    parse_class_names(&text).with_context(|| format!("class-name file '{}'", path.display()))
}

/// Parses class names, one per line; only the end may hold blank lines.
pub fn parse_class_names(text: &str) -> Result<Vec<String>> {
    let names: Vec<String> = lines(text.trim_end()).map(str::to_owned).collect();
    let blank = |(number, name): (usize, &String)| name.is_empty().then(|| format!("line {number} is blank"));
    let problems: Vec<String> = (1..).zip(&names).filter_map(blank).collect();
    ensure!(!text.trim().is_empty(), "is empty; write one name per line");
    ensure!(problems.is_empty(), "wants one name per line, but:{}", list_problems(&problems));
    Ok(names)
}

/// The .png, .jpg and .jpeg files of a folder, sorted by name; hidden files and subfolders are not searched.
pub fn list_images(dir: &Path) -> Result<Vec<PathBuf>> {
    require_dir(dir)?;
    let context = || format!("cannot list the folder '{}'; check its permissions", dir.display());
    let entries: Vec<_> = std::fs::read_dir(dir).and_then(Iterator::collect).with_context(context)?;
    let mut images: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(|p| is_image(p)).collect();
    images.sort();
    if images.is_empty() {
        let (shown, count) = (dir.display(), entries.len());
        bail!("no .png, .jpg or .jpeg file in '{shown}' ({count} other entries; subfolders are not searched)");
    }
    Ok(images)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    !hidden && matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) && path.is_file()
}

fn require_dir(dir: &Path) -> Result<()> {
    let shown = dir.display();
    let meta = std::fs::metadata(dir).with_context(|| format!("cannot open the folder '{shown}'; check the path"))?;
    ensure!(meta.is_dir(), "'{shown}' is not a folder; give the folder that holds the images");
    Ok(())
}

fn read_text(path: &Path, what: &str) -> Result<String> {
    let bytes = read_bounded(path, MAX_TEXT_BYTES, what)?;
    String::from_utf8(bytes).with_context(|| format!("'{}' is not UTF-8 text; give {what}", path.display()))
}

/// Trimmed lines, without a byte-order mark.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.strip_prefix('\u{feff}').unwrap_or(text).lines().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn labels_with_comments_spaces_and_carriage_returns() {
        let text = "\u{feff}# file class\r\n\r\na.jpg 3\r\n  my cat.png\t 0 \n";
        assert_eq!(parse_labels(text).unwrap(), [("a.jpg".to_owned(), 3), ("my cat.png".to_owned(), 0)]);
    }

    #[test]
    fn all_bad_lines_are_reported() {
        let text = message(parse_labels("a.jpg 1\nb.jpg\n\nc.jpg cat\nd.jpg -1\na.jpg 2\n"));
        for part in
            ["line 2: 'b.jpg' has no class", "line 4: 'cat'", "line 5: '-1'", "line 6: 'a.jpg' stands in line 1"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(message(parse_labels("# nothing\n")).contains("no labels"));
        let many = "x\n".repeat(25);
        assert!(message(parse_labels(&many)).ends_with("... and 5 more"));
    }

    #[test]
    fn missing_images_are_listed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let labels = dir.path().join("labels.txt");
        std::fs::write(&labels, "a.jpg 0\nb.jpg 1\nc.jpg 2\n").unwrap();
        std::fs::write(dir.path().join("b.jpg"), b"").unwrap();
        let text = message(read_labels(&labels, dir.path()));
        assert!(text.contains("2 of 3 images are missing"), "{text}");
        assert!(text.contains("a.jpg") && text.contains("c.jpg") && !text.contains("b.jpg"), "{text}");
        for name in ["a.jpg", "c.jpg"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let found = read_labels(&labels, dir.path()).unwrap();
        assert_eq!(found[2], Labelled { path: dir.path().join("c.jpg"), class: 2 });
        assert!(message(read_labels(&dir.path().join("none.txt"), dir.path())).contains("none.txt"));
        std::fs::write(&labels, [0xff, 0xfe]).unwrap();
        assert!(message(read_labels(&labels, dir.path())).contains("not UTF-8"));
    }

    #[test]
    fn class_names_keep_their_line() {
        assert_eq!(parse_class_names("tench, Tinca\ngoldfish\n\n").unwrap(), ["tench, Tinca", "goldfish"]);
        assert!(message(parse_class_names("a\n\nb\n")).contains("line 2 is blank"));
        assert!(message(parse_class_names("\n")).contains("is empty"));
    }

    #[test]
    fn images_are_sorted_and_others_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.JPG", "a.png", "c.jpeg", "labels.txt", ".hidden.png", "d.gif"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        std::fs::create_dir(dir.path().join("folder.png")).unwrap();
        let names: Vec<_> = list_images(dir.path()).unwrap();
        assert_eq!(names, ["a.png", "b.JPG", "c.jpeg"].map(|n| dir.path().join(n)));
    }

    #[test]
    fn empty_missing_and_wrong_folders_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.txt");
        std::fs::write(&file, b"").unwrap();
        assert!(message(list_images(dir.path())).contains("1 other entries"));
        assert!(message(list_images(&dir.path().join("none"))).contains("cannot open the folder"));
        assert!(message(list_images(&file)).contains("is not a folder"));
    }
}
