use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

/// A folder with executable files, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("mmun-program-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    fn compiled(&self, name: &str, options: &[&str]) -> Option<PathBuf> {
        let source = self.0.join("main.c");
        fs::write(&source, "int main(void) { return 0; }").unwrap();
        let file = self.0.join(name);
        let status = Command::new("gcc").args(options).arg(&source).arg("-o").arg(&file).output();
        let built = status.is_ok_and(|output| output.status.success());
        if !built {
            println!("skipped: gcc {options:?} is not possible here");
        }
        built.then_some(file)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> (i32, String) {
    let refusal = result.unwrap_err();
    (refusal.status, refusal.to_string())
}

#[test]
fn searches_like_execvp() {
    let folder = Folder::new("path");
    let (a, b) = (folder.0.join("a"), folder.0.join("b"));
    fs::create_dir_all(a.join("tool")).unwrap(); // a folder of that name is passed over
    fs::create_dir_all(&b).unwrap();
    folder.file("b/tool", "x");
    folder.file("b/plain", "x");
    fs::set_permissions(b.join("plain"), fs::Permissions::from_mode(0o644)).unwrap();
    let path = OsString::from(format!("/nonexistent:{}:{}:", a.display(), b.display()));
    let find = |name: &str| resolve(name.as_ref(), Some(&path));

    assert_eq!(find("tool"), Ok(b.join("tool")));
    assert_eq!(find("plain").unwrap_err().status, 126, "found, not executable");
    let missing = find("no-such-program").unwrap_err();
    assert_eq!(missing.status, 127);
    assert!(missing.to_string().starts_with("no-such-program: not found in PATH"), "{missing}");
    assert_eq!(find("").unwrap_err().status, 127);
    assert_eq!(find("./no-such-program").unwrap_err().status, 127);
    assert_eq!(find("/etc/passwd/x").unwrap_err().status, 127);
    assert_eq!(find("/etc/passwd").unwrap_err().status, 126);
    let above = find("/").unwrap_err();
    assert_eq!((above.status, above.to_string().as_str()), (126, "/: cannot be executed: it is a folder"));
    assert_eq!(find(a.to_str().unwrap()).unwrap_err().status, 126);
    assert!(find(b.join("tool").to_str().unwrap()).is_ok());
    // Cargo runs tests in the folder of the package: an empty entry finds what is there.
    assert_eq!(resolve("sh".as_ref(), None).map(|file| file.file_name() == Some("sh".as_ref())), Ok(true));
}

#[test]
fn judges_executables() {
    let folder = Folder::new("elf");
    assert_eq!(check(Path::new("/bin/true")), Ok(Way::Preload));
    let truth = fs::read("/bin/true").unwrap();

    let mut other = truth.clone();
    other[18..20].copy_from_slice(&183u16.to_le_bytes());
    let (status, text) = refused(check(&folder.file("arm", &other)));
    assert_eq!(status, 126);
    assert!(text.contains("another processor (ELF machine 183)"), "{text}");
    other[4] = 1;
    other[18] = 3;
    other[19] = 0;
    assert!(refused(check(&folder.file("i386", &other))).1.contains("32-bit"));

    assert!(refused(check(&folder.file("torn", &truth[..70]))).1.contains("damaged"));
    assert!(refused(check(&folder.file("stub", &truth[..6]))).1.contains("damaged"));
    let (status, text) = refused(check(&folder.file("text", "echo hello\n")));
    assert_eq!(status, 126);
    assert!(text.contains("mmun run sh "), "{text}");
    assert_eq!(refused(check(&folder.file("empty", ""))).0, 126);
    assert!(refused(check(&folder.file("data", [1, 2, 0, 4]))).1.contains("format"));
    assert_eq!(
        check(&fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap()),
        Ok(Way::Preload),
        "runs programs itself"
    );

    for (name, options) in [("static", ["-static"].as_slice()), ("static-pie", &["-static-pie"])] {
        if let Some(file) = folder.compiled(name, options) {
            assert_eq!(check(&file), Ok(Way::Inject));
        }
    }
    if let Some(file) = folder.compiled("musl", &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]) {
        assert_eq!(check(&file), Ok(Way::Inject));
    }
    if let Some(file) = folder.compiled("no-pie", &["-no-pie"]) {
        assert_eq!(check(&file), Ok(Way::Preload));
    }
}

#[test]
fn judges_rights() {
    let folder = Folder::new("rights");
    let program = folder.file("true", fs::read("/bin/true").unwrap());
    let mode = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o4755);
    assert_eq!(check(&program), Ok(Way::Preload), "setuid to who we are anyway");
    if chown(&program, Some(65534), Some(65534)).is_err() {
        println!("skipped: only root gives files away");
        return;
    }
    if rights_are_ignored(&program) {
        println!("skipped: setuid means nothing in {}", folder.0.display());
        return;
    }
    mode(0o4755); // chown has taken the bit
    let (status, text) = refused(check(&program));
    assert_eq!(status, 125);
    assert!(text.contains("it is setuid, so that the dynamic linker ignores LD_PRELOAD"), "{text}");
    mode(0o2755);
    assert!(refused(check(&program)).1.contains("it is setgid"));
    mode(0o2745);
    assert_eq!(check(&program), Ok(Way::Preload), "setgid without group execution means locking");
    mode(0o755);
    assert_eq!(check(&program), Ok(Way::Preload));
}

#[test]
fn follows_scripts() {
    let folder = Folder::new("scripts");
    assert_eq!(check(&folder.file("sh", "#!/bin/sh\n")), Ok(Way::Preload));
    assert_eq!(check(&folder.file("spaces", "#! \t/bin/sh -e \nexit")), Ok(Way::Preload));
    assert_eq!(check(&folder.file("no-newline", "#!/bin/sh")), Ok(Way::Preload));
    let wrong = |name: &str, content: &str| refused(check(&folder.file(name, content)));
    assert!(wrong("none", "#! \n").1.contains("names no interpreter"));
    assert!(wrong("dos", "#!/bin/sh\r\n").1.contains("Windows line ends"));
    assert!(
        wrong("missing", "#!/nonexistent/sh\n").1.contains("interpreter /nonexistent/sh cannot be executed")
    );
    assert!(wrong("long", &format!("#!/{}\n", "x".repeat(300))).1.contains("too long"));

    // As deep as the kernel goes, and one deeper.
    let mut last = PathBuf::from("/bin/true");
    for depth in 1..=SCRIPTS + 1 {
        last = folder.file(&format!("deep{depth}"), format!("#!{}\n", last.display()));
        let runs = loop {
            match Command::new(&last).status() {
                // Another test forks at this moment, and its child has the file still open for writing.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                ended => break ended.is_ok(),
            }
        };
        assert_eq!(check(&last).is_ok(), runs, "{depth} scripts");
    }
    assert!(refused(check(&last)).1.contains("and so on"));

    if let Some(program) = folder.compiled("static", &["-static"]) {
        let script = folder.file("on-static", format!("#!{}\n", program.display()));
        assert_eq!(check(&script), Ok(Way::Inject));
    }
}
