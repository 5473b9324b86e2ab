//! Generates the protocol from `varve/v1/*.proto`, with `protox`, so that `protoc` need not be
//! installed.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 12] = [
    "varve/v1/types.proto",
    "varve/v1/snapshots.proto",
    "varve/v1/images.proto",
    "varve/v1/volumes.proto",
    "varve/v1/content.proto",
    "varve/v1/status.proto",
    "varve/v1/replication.proto",
    "varve/v1/copies.proto",
    "varve/v1/remotes.proto",
    "varve/v1/gc.proto",
    "varve/v1/accounts.proto",
    "varve/v1/archive.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        // Payloads are slices of the receive buffer, not copies.
        .bytes(".")
        .btree_map(".")
        // They have secrets: `secrets.rs` shows them without.
        .skip_debug([
            "varve.v1.CreateTokenResponse",
            "varve.v1.CreateAccessKeyResponse",
            "varve.v1.AttachVolumeResponse",
        ])
        .build_server(false)
        .compile_fds(descriptors.clone())?;
    // The servers are generated separately, because they have a codec of their own.
    let servers = out.join("servers");
    fs::create_dir_all(&servers)?;
    tonic_prost_build::configure()
        .extern_path(".varve.v1", "crate::v1")
        .build_client(false)
        .codec_path("crate::RequestCodec")
        .out_dir(servers)
        .compile_fds(descriptors)?;
    Ok(())
}
