//! Profiles: endpoints, tokens and certificates that have a name in a file of the user.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};
use varve_client::{Error, ErrorKind, Result};

/// The profile that is used if none is named.
const DEFAULT: &str = "default";
/// The keys of a profile.
const KEYS: [&str; 5] = ["endpoint", "token_file", "tls_ca", "tls_cert", "tls_key"];

/// The settings of a connection that a user has given a name.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Profile {
    pub(crate) endpoint: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
}

impl Profile {
    /// Reads the profile with this name from the user's file. Without a name, it is the one called
    /// `default`, or an empty one if there is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if there is no such profile, and for a file with anything in it that
    /// is not understood. Errors of the file.
    pub(crate) fn load(name: Option<&str>) -> Result<Self> {
        let home = env::var_os("HOME").map(PathBuf::from);
        let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        match file(config, home.as_deref()) {
            Some(file) => Self::of_file(&file, home.as_deref(), name),
            None => match name {
                Some(name) => Err(none(name, "neither XDG_CONFIG_HOME nor HOME is set")),
                None => Ok(Self::default()),
            },
        }
    }

    fn of_file(file: &Path, home: Option<&Path>, name: Option<&str>) -> Result<Self> {
        let shown = file.display();
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            // HOME may be another user's, as it is below `sudo -u`.
            Err(error) if name.is_none() && error.kind() == io::ErrorKind::PermissionDenied => {
                String::new()
            }
            read => read.map_err(|error| Error::file(format!("read {shown}"), error))?,
        };
        let read = Reader {
            file,
            home,
            text: &text,
        };
        let mut profiles = read.profiles()?;
        let wanted = name.unwrap_or(DEFAULT);
        let found = profiles.iter().position(|(found, _)| found == wanted);
        match found {
            Some(at) => Ok(profiles.swap_remove(at).1),
            None if name.is_none() => Ok(Self::default()),
            None => Err(none(wanted, &format!("it is not in {shown}"))),
        }
    }
}

/// The file with the profiles; `None` if the user has no directory for it.
fn file(config: Option<PathBuf>, home: Option<&Path>) -> Option<PathBuf> {
    // The specification of these directories says to ignore relative paths.
    let config = config.filter(|path| path.is_absolute());
    let config = config.or_else(|| Some(home?.join(".config")));
    Some(config?.join("varve").join("config.toml"))
}

fn none(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("use profile {name}"), why)
}

/// Reads one file. Its errors name keys, and never values: one may be a token in the wrong place.
struct Reader<'a> {
    file: &'a Path,
    home: Option<&'a Path>,
    text: &'a str,
}

impl Reader<'_> {
    fn wrong(&self, why: impl Into<String>) -> Error {
        let what = format!("read {}", self.file.display());
        Error::new(ErrorKind::Invalid, what, why)
    }

    /// All profiles. A mistake in one that is not used is found, too.
    fn profiles(&self) -> Result<Vec<(String, Profile)>> {
        let table: Table = toml::from_str(self.text).map_err(|error| {
            let before = error.span().and_then(|span| self.text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            self.wrong(format!("line {line} is not TOML: {}", error.message()))
        })?;
        let mut profiles = Vec::new();
        for (key, value) in table {
            let Value::Table(named) = value else {
                return Err(self.unknown(&key, "profiles begin with [profile.NAME]"));
            };
            if key != "profile" {
                return Err(self.unknown(&key, "profiles begin with [profile.NAME]"));
            }
            for (name, settings) in named {
                let Value::Table(settings) = settings else {
                    let key = format!("profile.{name}");
                    return Err(self.unknown(&key, "profiles begin with [profile.NAME]"));
                };
                let profile = self.profile(&name, settings)?;
                profiles.push((name, profile));
            }
        }
        Ok(profiles)
    }

    fn unknown(&self, key: &str, help: &str) -> Error {
        self.wrong(format!("{key}: unknown key; {help}"))
    }

    fn profile(&self, name: &str, settings: Table) -> Result<Profile> {
        let mut profile = Profile::default();
        for (key, value) in settings {
            let full = format!("profile.{name}.{key}");
            if !KEYS.contains(&key.as_str()) {
                return Err(self.unknown(&full, &format!("the keys are {}", KEYS.join(", "))));
            }
            let Value::String(text) = value else {
                return Err(self.wrong(format!("{full}: write text in quotes")));
            };
            match key.as_str() {
                "endpoint" => profile.endpoint = Some(self.endpoint(&full, text)?),
                "token_file" => profile.token_file = Some(self.path(&full, &text)?),
                "tls_ca" => profile.tls_ca = Some(self.path(&full, &text)?),
                "tls_cert" => profile.tls_cert = Some(self.path(&full, &text)?),
                _ => profile.tls_key = Some(self.path(&full, &text)?),
            }
        }
        if profile.tls_cert.is_some() != profile.tls_key.is_some() {
            let why = format!("profile.{name}: tls_cert and tls_key need each other");
            return Err(self.wrong(why));
        }
        Ok(profile)
    }

    fn endpoint(&self, key: &str, text: String) -> Result<String> {
        match text.strip_prefix("unix:~/") {
            Some(_) => {
                let path = self.path(key, &text["unix:".len()..])?;
                Ok(format!("unix:{}", path.display()))
            }
            None => Ok(text),
        }
    }

    /// A path, with the user's directory in place of `~/`.
    fn path(&self, key: &str, text: &str) -> Result<PathBuf> {
        let path = match (text.strip_prefix("~/"), self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            (Some(_), None) => return Err(self.wrong(format!("{key}: HOME is not set"))),
            (None, _) => PathBuf::from(text),
        };
        // It would depend on the directory in which snapctl runs.
        if !path.is_absolute() {
            return Err(self.wrong(format!("{key}: the path begins with neither / nor ~/")));
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn load(text: &str, name: Option<&str>) -> Result<Profile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Profile::of_file(&path, Some(Path::new("/people/me")), name)
    }

    const TWO: &str = r#"
[profile.default]
endpoint = "unix:~/varve/grpc.sock"

[profile.backup]
endpoint = "https://varve.example.com:7420"
token_file = "~/.config/varve/backup.token"
tls_ca = "/etc/varve/ca.pem"
"#;

    #[test]
    fn profiles_have_names_and_one_is_the_default() {
        let default = load(TWO, None).unwrap();
        let endpoint = default.endpoint.as_deref();
        assert_eq!(endpoint, Some("unix:/people/me/varve/grpc.sock"));
        let backup = load(TWO, Some("backup")).unwrap();
        let token_file = Path::new("/people/me/.config/varve/backup.token");
        assert_eq!(backup.token_file.as_deref(), Some(token_file));
        assert_eq!(
            backup.tls_ca.as_deref(),
            Some(Path::new("/etc/varve/ca.pem"))
        );
        assert_eq!(load("", None).unwrap(), Profile::default());
        let nowhere = Profile::of_file(Path::new("/nowhere/x"), None, None);
        assert_eq!(nowhere.unwrap(), Profile::default());
        let error = load(TWO, Some("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(
            text.starts_with("use profile none: it is not in /"),
            "{text}"
        );
    }

    #[test]
    fn mistakes_are_told_with_file_and_key_and_without_values() {
        for (text, says) in [
            (
                "[profile.a]\ntoken = \"hunter2\"",
                "profile.a.token: unknown key",
            ),
            (
                "[profiles.a]\nendpoint = \"hunter2\"",
                "profiles: unknown key",
            ),
            ("endpoint = \"hunter2\"", "endpoint: unknown key"),
            ("profile = \"hunter2\"", "profile: unknown key"),
            ("[profile]\na = \"hunter2\"", "profile.a: unknown key"),
            (
                "[profile.a]\ntoken_file = 7",
                "profile.a.token_file: write text",
            ),
            (
                "[profile.a]\ntoken_file = \"hunter2\"",
                "profile.a.token_file: the path",
            ),
            (
                "[profile.a]\ntls_ca = \"~root/hunter2\"",
                "profile.a.tls_ca: the path",
            ),
            (
                "[profile.a]\ntls_cert = \"/hunter2\"",
                "profile.a: tls_cert and tls_key",
            ),
            ("[profile.a]\nendpoint = hunter2", "line 2 is not TOML"),
        ] {
            for name in [None, Some("a")] {
                let error = load(text, name).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid);
                let error = format!("{error} {error:?}");
                assert!(error.contains(says), "{error}");
                assert!(error.contains("config.toml"), "{error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn the_file_is_where_the_user_has_settings() {
        let home = Path::new("/people/me");
        let of = |config: &str, home| file(Some(PathBuf::from(config)), home);
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of("/c", Some(home)), at("/c/varve/config.toml"));
        assert_eq!(of("/c", None), at("/c/varve/config.toml"));
        assert_eq!(
            of("rel", Some(home)),
            at("/people/me/.config/varve/config.toml")
        );
        assert_eq!(
            file(None, Some(home)),
            at("/people/me/.config/varve/config.toml")
        );
        assert_eq!(file(None, None), None);
    }
}
