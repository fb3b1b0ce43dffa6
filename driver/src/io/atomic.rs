//! Whole files or none: writes go to a temporary file beside the target, which is renamed when all is written.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Writes the file `path` with `write`; when anything fails, the old file, or none, is what is there.
///
/// A symbolic link is followed and keeps its place. A device or pipe, such as `/dev/stdout`, is written to directly.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let context = || format!("cannot write '{}'", path.display());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => bail!("'{}' is a folder; give the name of a file in it", path.display()),
        Ok(meta) if meta.is_file() => {
            let permissions = meta.permissions();
            if permissions.readonly() {
                bail!("'{}' is read-only; choose another name or make it writable", path.display());
            }
            let target = fs::canonicalize(path).with_context(context)?;
            replace(&target, Some(permissions), write).with_context(context)
        }
        Ok(_) => write_through(path, write).with_context(context),
        Err(_) => replace(path, None, write).with_context(context),
    }
}

/// Fails where [`write_atomically`] would fail before its first byte; for before the long work that makes the content.
pub fn check_writable(path: &Path) -> Result<()> {
    let context = || format!("cannot write '{}'", path.display());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => bail!("'{}' is a folder; give the name of a file in it", path.display()),
        Ok(meta) if meta.is_file() && meta.permissions().readonly() => {
            bail!("'{}' is read-only; choose another name or make it writable", path.display())
        }
        Ok(meta) if meta.is_file() => {
            let target = fs::canonicalize(path).with_context(context)?;
            Temporary::beside(&target).map(drop).with_context(context)
        }
        Ok(_) => OpenOptions::new().write(true).open(path).map(drop).with_context(context),
        Err(_) => Temporary::beside(path).map(drop).with_context(context),
    }
}

fn replace(
    target: &Path,
    permissions: Option<Permissions>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let (temporary, file) = Temporary::beside(target)?;
    let mut buffer = BufWriter::new(file);
    write(&mut buffer)?;
    let file = buffer.into_inner().map_err(|e| e.into_error()).context("is the disk full?")?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.sync_all().context("is the disk full?")?;
    drop(file);
    temporary.rename(target)
}

fn write_through(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut buffer = BufWriter::new(OpenOptions::new().write(true).open(path)?);
    write(&mut buffer)?;
    Ok(buffer.flush()?)
}

/// A temporary file that is removed when dropped.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn beside(target: &Path) -> Result<(Self, File)> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().context("the path has no file name; give one")?.to_string_lossy();
        let dir = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !dir.is_dir() {
            bail!("the folder '{}' does not exist; create it first", dir.display());
        }
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        // Long names are cut so that the additions do not pass the file system's limit.
        let short: String = name.chars().take(40).collect();
        let path = dir.join(format!(".{short}.{}.{unique}.tmp", std::process::id()));
        let open = OpenOptions::new().write(true).create_new(true).open(&path);
        let advice = || format!("cannot create a file in '{}'; check its permissions", dir.display());
        open.with_context(advice).map(|file| (Self { path, renamed: false }, file))
    }

    fn rename(mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write_text(path: &Path, text: &str) -> Result<()> {
        write_atomically(path, |w| Ok(w.write_all(text.as_bytes())?))
    }

    #[test]
    fn creates_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        for text in ["one", "second"] {
            write_text(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(dir.path()), ["a.txt"]);
        write_text(&dir.path().join("x".repeat(255)), "long").unwrap();
    }

    #[test]
    fn a_failure_or_panic_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let fail = |path: &Path| {
            write_atomically(path, |w| {
                w.write_all(&[b'x'; 100_000])?;
                bail!("half way")
            })
        };
        assert!(format!("{:#}", fail(&path).unwrap_err()).contains("a.txt': half way"));
        assert!(names(dir.path()).is_empty());
        write_text(&path, "old").unwrap();
        fail(&path).unwrap_err();
        let panicked = std::panic::catch_unwind(|| write_atomically(&path, |_| panic!("in the writer")));
        assert!(panicked.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn unwritable_targets_are_explained() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| format!("{:#}", write_text(path, "x").unwrap_err());
        assert!(message(dir.path()).contains("is a folder"));
        assert!(message(&dir.path().join("none/a.txt")).contains("does not exist; create it first"));
        let path = dir.path().join("fixed.txt");
        fs::write(&path, "kept").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        assert!(message(&path).contains("is read-only"));
        for (path, writable) in [
            (dir.path().join("new.txt"), true),
            (dir.path().join("none/a.txt"), false),
            (path.clone(), false),
            (dir.path().to_owned(), false),
        ] {
            assert_eq!(check_writable(&path).is_ok(), writable, "{}", path.display());
        }
        assert_eq!(names(dir.path()), ["fixed.txt"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[cfg(unix)]
    #[test]
    fn links_devices_and_permissions_stay_what_they_are() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        symlink(&real, &link).unwrap();
        write_text(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        write_text(Path::new("/dev/null"), "x").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
