//! `scripts/install-packages` on a machine with conflicting packages, with a simulated apt: nothing
//! is removed.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use varve_tests::{
    process::{Finished, command, run},
    programs::{repository, tool},
    scratch::Scratch,
};

/// Programs that the script needs beside apt.
const TOOLS: [&str; 14] = [
    "awk", "bash", "basename", "cat", "cut", "dirname", "env", "grep", "mktemp", "rm", "sed",
    "sort", "tail", "true",
];

/// A machine without the packages of group "build", and with a simulated apt.
struct Machine {
    scratch: Scratch,
    bin: PathBuf,
}

impl Machine {
    /// `install` is the shell script of apt's installation: `$*` has its arguments. `removed` are
    /// packages that it would remove.
    fn new(install: &str, removed: &[&str]) -> Self {
        let scratch = Scratch::new();
        let bin = scratch.join("bin");
        fs::create_dir(&bin).unwrap();
        for name in TOOLS {
            std::os::unix::fs::symlink(tool(name), bin.join(name)).unwrap();
        }
        let machine = Self { scratch, bin };
        let removals: String = removed
            .iter()
            .map(|package| format!("Remv {package} [1.0]\n"))
            .collect();
        let simulated = machine.scratch.file("removals", removals);
        let calls = machine.calls_file();
        machine.program(
            "apt-get",
            &format!(
                "echo \"$*\" >>'{}'\ncase \"$*\" in\n*' update') ;;\n*' -s '*) while read -r line; do echo \"$line\"; done <'{}' ;;\n*) {install} ;;\nesac\n",
                calls.display(),
                simulated.display()
            ),
        );
        machine.program("apt-cache", "echo \"$2 | 7.2-1 | the mirror\"\n");
        machine.program("sudo", "[ \"$1\" = -n ] && shift\nexec \"$@\"\n");
        machine
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.bin.join(name);
        fs::write(&path, format!("#!{}\n{text}", tool("bash").display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls_file(&self) -> PathBuf {
        self.scratch.join("calls")
    }

    fn install(&self, group: &str) -> Finished {
        let script = repository().join("scripts/install-packages");
        let mut install = command(tool("bash"), [script.as_os_str(), group.as_ref()]);
        // Files in the user's directories do not belong to this machine.
        install
            .env("PATH", &self.bin)
            .env("HOME", self.bin.join("nobody"))
            .env_remove("XDG_CACHE_HOME")
            .env("TMPDIR", env::temp_dir());
        run(install)
    }

    /// The arguments of apt's installations.
    fn installs(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.calls_file()).unwrap();
        let install = |call: &&str| call.contains(" install ") && !call.contains(" -s ");
        calls.lines().filter(install).map(str::to_owned).collect()
    }
}

/// An apt that installs: the compilers exist afterwards.
fn puts_compilers(machine: &str) -> String {
    format!(
        "for name in cc c++ make; do echo >\"{machine}/$name\"; {} 755 \"{machine}/$name\"; done",
        tool("chmod").display()
    )
}

const THERE: &str = "${0%/*}";

#[test]
fn what_is_missing_is_installed_and_nothing_removed() {
    let machine = Machine::new(&puts_compilers(THERE), &[]);
    machine.install("build").ok();
    let installs = machine.installs();
    assert_eq!(installs.len(), 1, "{installs:?}");
    assert!(installs[0].contains("--no-remove"), "{installs:?}");
    assert!(installs[0].contains(" g++ gcc"), "{installs:?}");
    // Everything is installed now.
    machine.install("build").ok();
    assert_eq!(machine.installs(), installs);
}

#[test]
fn a_package_of_somebody_elses_stays() {
    let machine = Machine::new("exit 100", &["their-compiler"]);
    let told = machine.install("build").fails(1);
    assert!(
        told.contains("cannot be beside what is installed here: their-compiler"),
        "{told}"
    );
    assert!(told.contains("Nothing was installed"), "{told}");
    assert_eq!(machine.installs().len(), 1);
}

#[test]
fn a_package_that_is_installed_here_anyway_is_brought_to_the_version_of_the_others() {
    let install = format!(
        "case \"$*\" in *--allow-downgrades*) {} ;; *) exit 100 ;; esac",
        puts_compilers(THERE)
    );
    let machine = Machine::new(&install, &["qemu-utils"]);
    let told = machine.install("build").success().text();
    assert!(
        told.contains("Brought to the version that goes with them: qemu-utils=7.2-1"),
        "{told}"
    );
    let installs = machine.installs();
    assert_eq!(installs.len(), 2, "{installs:?}");
    assert!(installs[1].contains("--no-remove"), "{installs:?}");
    assert!(installs[1].ends_with(" qemu-utils=7.2-1"), "{installs:?}");
}

#[test]
fn an_apt_that_fails_is_heard() {
    let machine = Machine::new("echo 'E: Unable to fetch some archives'; exit 100", &[]);
    let told = machine.install("build").fails(1);
    assert!(told.contains("Unable to fetch some archives"), "{told}");
    assert!(told.contains("apt-get could not install:"), "{told}");
}
