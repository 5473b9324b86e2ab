#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{collections::HashMap, path::Path};

use super::*;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("varved.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn load(arguments: &Arguments, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment: HashMap<_, _> = environment.iter().copied().collect();
    Config::load_with(arguments, |name| environment.get(name).map(OsString::from))
}

fn with_file(text: &str) -> Result<Config, ConfigError> {
    let (_dir, path) = file(text);
    let arguments = Arguments {
        config: Some(path),
        ..Arguments::default()
    };
    load(&arguments, &[("VARVE_DATA_DIR", "/data")])
}

fn message(result: Result<Config, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_data_directory_is_enough() {
    let config = load(&Arguments::default(), &[("VARVE_DATA_DIR", "/data")]).unwrap();
    assert_eq!((&config.grpc.unix, &config.nbd.unix), (&None, &None));
    assert_eq!(
        config.run_dir,
        Path::new("/run/varve"),
        "where snapctl looks"
    );
    assert_eq!(
        config.grpc_unix_in(&config.run_dir),
        Path::new("/run/varve/grpc.sock")
    );
    assert_eq!(config.socket_mode, 0o600);
    assert!(config.grpc.tcp.is_none() && config.nbd.tcp.is_none() && config.grpc.tls.is_none());
    assert_eq!(config.upload_idle, Duration::from_secs(600));
    assert_eq!(config.log.filter, "info");
}

#[test]
fn without_a_data_directory_the_ways_to_give_one_are_named() {
    let message = message(load(&Arguments::default(), &[]));
    assert!(
        message.contains("--data-dir") && message.contains("VARVE_DATA_DIR"),
        "{message}"
    );
}

#[test]
fn arguments_win_over_environment_over_file_over_defaults() {
    let (_dir, path) = file(
        "data_dir = '/from-file'\n\
         [grpc]\nunix = '/file/grpc'\ntcp = '127.0.0.1:1'\n\
         [nbd]\nunix = '/file/nbd'\nconnections_max = 7\n",
    );
    let arguments = Arguments {
        config: Some(path),
        grpc_unix: Some("/argument/grpc".into()),
        ..Arguments::default()
    };
    let config = load(
        &arguments,
        &[
            ("VARVE_GRPC_UNIX", "/variable/grpc"),
            ("VARVE_NBD_UNIX", "/variable/nbd"),
        ],
    )
    .unwrap();
    assert_eq!(config.data_dir, Path::new("/from-file"));
    assert_eq!(
        config.grpc_unix_in(Path::new("/x")),
        Path::new("/argument/grpc")
    );
    assert_eq!(
        config.nbd_unix_in(Path::new("/x")),
        Path::new("/variable/nbd")
    );
    assert_eq!(config.grpc.tcp, Some("127.0.0.1:1".parse().unwrap()));
    assert_eq!(config.nbd.connections_max, 7);
    assert_eq!(config.nbd.tcp, None);
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let (_dir, path) = file("data_dir = '/from-file'");
    let config = load(
        &Arguments::default(),
        &[("VARVE_CONFIG", path.to_str().unwrap())],
    )
    .unwrap();
    assert_eq!(config.data_dir, Path::new("/from-file"));
}

#[test]
fn an_empty_variable_is_not_set() {
    let config = load(
        &Arguments::default(),
        &[("VARVE_DATA_DIR", "/data"), ("VARVE_LOG", "")],
    )
    .unwrap();
    assert_eq!(config.log.filter, "info");
}

#[test]
fn unknown_keys_are_refused_by_name() {
    for (text, key) in [
        ("dta_dir = '/x'", "\"dta_dir\""),
        ("[store]\ncompresion = 'zstd'", "\"store.compresion\""),
        ("[sotre]\ncompression = 'zstd'", "\"sotre\""),
        ("grpc = 1", "\"grpc\""),
        ("[grpc.unix2]\na = 1", "\"grpc.unix2\""),
    ] {
        let message = message(with_file(text));
        assert!(
            message.contains("unknown key") && message.contains(key),
            "{text}: {message}"
        );
        assert!(message.contains("varved.toml"), "{message}");
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused_with_key_and_place() {
    for (text, key) in [
        ("socket_mode = '0999'", "socket_mode"),
        ("socket_mode = '7777'", "socket_mode"),
        // Decimal numbers that look like octal ones: 0o1224, 0o670, 0o620.
        ("socket_mode = 660", "socket_mode"),
        ("socket_mode = 440", "socket_mode"),
        ("socket_mode = 400", "socket_mode"),
        ("socket_mode = -1", "socket_mode"),
        ("socket_open_to_all = 1", "socket_open_to_all"),
        ("[store]\ncpu_threads = 100000", "store.cpu_threads"),
        (
            "[store]\nchunk_cache_bytes = 9223372036854775807",
            "store.chunk_cache_bytes",
        ),
        ("[log]\nfilter = 'inof'", "log.filter"),
        ("data_dir = ''", "data_dir"),
        ("[store]\ncompression = 'brotli'", "store.compression"),
        ("[store]\nio_engine = 'aio'", "store.io_engine"),
        ("[store]\nchunk_cache_bytes = -1", "store.chunk_cache_bytes"),
        (
            "[store]\nchunk_cache_bytes = 1.5",
            "store.chunk_cache_bytes",
        ),
        (
            "[store]\njournal_bytes_max = 4096",
            "store.journal_bytes_max",
        ),
        ("[grpc]\ntcp = 'localhost'", "grpc.tcp"),
        ("[grpc]\nunix = ['a']", "grpc.unix"),
        ("[nbd]\nconnections_max = 0", "nbd.connections_max"),
        ("[nbd]\nconnections_max = true", "nbd.connections_max"),
        ("[nbd]\ntls_required = 'perhaps'", "nbd.tls_required"),
        ("[upload]\nidle_seconds = 0", "upload.idle_seconds"),
        ("[log]\nformat = 'xml'", "log.format"),
    ] {
        let (_dir, path) = file(text);
        let arguments = Arguments {
            config: Some(path),
            ..Arguments::default()
        };
        // The environment does not set it here, so the data_dir of the file counts.
        let environment: &[(&str, &str)] = if key == "data_dir" {
            &[]
        } else {
            &[("VARVE_DATA_DIR", "/data")]
        };
        let message = message(load(&arguments, environment));
        assert!(
            message.contains(key) && message.contains("varved.toml"),
            "{text}: {message}"
        );
    }
    let message = message(load(
        &Arguments::default(),
        &[
            ("VARVE_DATA_DIR", "/data"),
            ("VARVE_CHUNK_CACHE_BYTES", "12 MiB"),
        ],
    ));
    let refused = |text| self::message(with_file(text));
    assert!(refused("[grpc]\ntcp = 'x'").contains("127.0.0.1:7433"));
    assert!(refused("[nbd]\ntcp = 'x'").contains("127.0.0.1:10809"));
    assert!(
        message.contains("VARVE_CHUNK_CACHE_BYTES") && message.contains("12 MiB"),
        "{message}"
    );
}

#[test]
fn a_file_that_is_absent_or_no_toml_is_named() {
    let arguments = Arguments {
        config: Some("/nowhere/varved.toml".into()),
        ..Arguments::default()
    };
    assert!(message(load(&arguments, &[])).contains("/nowhere/varved.toml"));
    assert!(message(with_file("data_dir = ")).contains("not valid TOML"));
}

#[test]
fn tls_needs_both_files_and_an_address() {
    for text in [
        "[grpc]\ntcp = '[::1]:1'\ntls_cert = '/c'",
        "[grpc]\ntcp = '[::1]:1'\ntls_key = '/k'",
        "[grpc]\ntls_cert = '/c'\ntls_key = '/k'",
    ] {
        assert!(message(with_file(text)).contains("grpc.tls_"), "{text}");
    }
    let config = with_file("[grpc]\ntcp = '[::1]:1'\ntls_cert = '/c'\ntls_key = '/k'").unwrap();
    assert_eq!(config.grpc.tls.unwrap().key, Path::new("/k"));
    for text in [
        "[nbd]\ntcp = '[::1]:1'\ntls_cert = '/c'",
        "[nbd]\ntcp = '[::1]:1'\ntls_client_ca = '/a'",
        "[nbd]\ntls_cert = '/c'\ntls_key = '/k'",
    ] {
        assert!(message(with_file(text)).contains("nbd.tls_"), "{text}");
    }
    let text = "[nbd]\ntcp = '[::1]:1'\ntls_cert = '/c'\ntls_key = '/k'";
    let nbd = with_file(text).unwrap().nbd;
    assert!(nbd.tls.is_some() && nbd.tls_required);
    for no in ["false", "'false'"] {
        let nbd = with_file(&format!("{text}\ntls_required = {no}"))
            .unwrap()
            .nbd;
        assert!(!nbd.tls_required);
    }
}

#[test]
fn two_services_cannot_share_a_socket() {
    assert!(
        message(with_file("[grpc]\nunix = '/s'\n[nbd]\nunix = '/s'"))
            .contains("grpc.unix and nbd.unix")
    );
    assert!(
        message(with_file("[grpc]\nunix = '/x/nbd.sock'")).contains("both /x/nbd.sock"),
        "where NBD's is by default"
    );
    let tcp =
        |grpc: &str, nbd: &str| with_file(&format!("[grpc]\ntcp = '{grpc}'\n[nbd]\ntcp = '{nbd}'"));
    let refused = message(tcp("127.0.0.1:7433", "127.0.0.1:7433"));
    assert!(refused.contains("grpc.tcp and nbd.tcp are both 127.0.0.1:7433"));
    tcp("127.0.0.1:0", "127.0.0.1:0").unwrap();
    tcp("127.0.0.1:7433", "[::1]:7433").unwrap();
}

#[test]
fn help_names_the_variables_of_its_options() {
    use clap::Args as _;
    let mut command = Arguments::augment_args(clap::Command::new("varved"));
    let help = command.render_help().to_string();
    // Lines may be broken anywhere.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in SETTINGS.iter().filter(|setting| setting.flag.is_some()) {
        let variable = format!("[env: {}]", setting.variable);
        assert!(help.contains(&variable), "{variable} is not in {help}");
    }
}

#[test]
fn the_socket_of_nbd_is_beside_the_one_of_grpc() {
    for (text, nbd) in [
        ("", "/dir/nbd.sock"),
        ("[grpc]\nunix = '/x/g'", "/x/nbd.sock"),
        ("[grpc]\nunix = 'g'", "nbd.sock"),
        ("[grpc]\nunix = '/x/g'\n[nbd]\nunix = '/y/n'", "/y/n"),
    ] {
        let config = with_file(text).unwrap();
        assert_eq!(
            config.nbd_unix_in(Path::new("/dir")),
            Path::new(nbd),
            "{text}"
        );
    }
}

/// The documented file has every setting with its default, as a comment. Uncommented, it changes
/// nothing.
#[test]
fn the_documented_file_is_complete_and_valid() {
    let text = include_str!("../../../docs/varved.toml");
    let active: String = text
        .lines()
        .filter_map(|line| match line.strip_prefix('#') {
            Some(rest)
                if rest.starts_with(|c: char| c.is_ascii_lowercase()) && rest.contains(" = ") =>
            {
                Some(format!("{rest}\n"))
            }
            Some(_) => None,
            None => Some(format!("{line}\n")),
        })
        .collect();
    let (_dir, path) = file(&active);
    let mut values = Values::default();
    values.overlay_file(&path).unwrap();
    for setting in &SETTINGS {
        assert!(
            values.get(setting.key).is_some(),
            "docs/varved.toml has no {}",
            setting.key
        );
        assert!(
            text.contains(setting.variable),
            "docs/varved.toml has no {}",
            setting.variable
        );
        assert!(
            setting.flag.is_none_or(|flag| text.contains(flag)),
            "docs/varved.toml has no {:?}",
            setting.flag
        );
    }
    let documented = Config::resolve(&values, None).unwrap();
    let default = Config::for_data_dir(&documented.data_dir).unwrap();
    assert_eq!(documented.socket_mode, default.socket_mode);
    assert_eq!(documented.store.io_engine, default.store.io_engine);
    assert_eq!(
        documented.store.chunk_cache_bytes,
        default.store.chunk_cache_bytes
    );
    assert_eq!(
        documented.store.journal_bytes_max,
        default.store.journal_bytes_max
    );
    assert_eq!(documented.store.cpu_threads, default.store.cpu_threads);
    let run_dir = &documented.run_dir;
    assert_eq!(documented.grpc_unix_in(run_dir), run_dir.join("grpc.sock"));
    assert_eq!(documented.nbd_unix_in(run_dir), run_dir.join("nbd.sock"));
    assert_eq!(documented.nbd.connections_max, default.nbd.connections_max);
    assert_eq!(documented.upload_idle, default.upload_idle);
    assert!(matches!(documented.gc.when, GcTime::Window(_)));
    let gc = GcConfig {
        when: default.gc.when,
        ..documented.gc
    };
    assert_eq!(gc, default.gc);
    assert_eq!(documented.log.filter, default.log.filter);
    assert_eq!(documented.log.format, default.log.format);
}

#[test]
fn permissions_of_sockets_mean_what_is_written() {
    for (text, mode) in [
        ("socket_mode = 0o660", 0o660),
        ("socket_mode = '0660'", 0o660),
        ("socket_mode = '660'", 0o660),
        ("socket_mode = '0o600'", 0o600),
        ("socket_mode = 0o666\nsocket_open_to_all = true", 0o666),
    ] {
        let text = format!("data_dir = '/data'\n{text}");
        assert_eq!(with_file(&text).unwrap().socket_mode, mode, "{text}");
    }
    let refused = message(with_file("data_dir = '/data'\nsocket_mode = 0o666"));
    assert!(
        refused.contains("0666") && refused.contains("socket_open_to_all = true"),
        "{refused}"
    );
}

#[test]
fn a_service_has_the_directory_that_the_service_manager_made() {
    let made = ("STATE_DIRECTORY", "/var/lib/varve:/var/lib/other");
    let config = load(&Arguments::default(), &[made]).unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/varve"));
    let config = load(&Arguments::default(), &[made, ("VARVE_DATA_DIR", "/data")]).unwrap();
    assert_eq!(config.data_dir, Path::new("/data"));
}

#[test]
fn collections_are_off_or_in_a_window_or_at_an_interval() {
    let when = |text: &str| with_file(text).unwrap().gc.when;
    let day = Duration::from_hours(24);
    assert_eq!(when(""), GcTime::Every(day));
    let hour = Duration::from_hours(1);
    assert_eq!(when("[gc]\nevery = '1h'"), GcTime::Every(hour));
    let window = "window = '22:00-04:00'";
    let in_window = when(&format!("[gc]\nevery = '1h'\n{window}"));
    assert!(matches!(in_window, GcTime::Window(_)), "{in_window:?}");
    let off = when(&format!("[gc]\nevery = 'off'\n{window}"));
    assert_eq!(off, GcTime::Off);
    for text in [
        "every = 24",
        "window = 'night'",
        "rewrite_dead = 0",
        "bytes_per_second = 'x'",
    ] {
        let refused = message(with_file(&format!("[gc]\n{text}")));
        let key = text.split(' ').next().unwrap();
        assert!(refused.contains(&format!("gc.{key}")), "{text}: {refused}");
    }
}
