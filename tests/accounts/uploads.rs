//! Uploads of accounts, which prove that they have what they upload.

use std::{fs, path::Path};

use tonic::{Code, Request, metadata::MetadataValue, transport::Endpoint};
use varve_proto::v1::{self, content_service_client::ContentServiceClient};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    random::Random,
    snapctl::{exit, text},
};

use super::{account, token, with_token};

/// Imports a file with a token. Returns its report.
fn import(lab: &Lab, token: &Path, file: &Path, arguments: &str) -> serde_json::Value {
    let import = format!("import {} {arguments} -o json", file.display());
    let made = with_token(lab, token, &import).success();
    serde_json::from_slice(&made.stdout).unwrap()
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    Random::seeded(seed).fill(&mut noise);
    noise
}

fn exported(lab: &Lab, token: &Path, snapshot: &str) -> Vec<u8> {
    let file = lab.scratch.join("exported.img");
    let export = format!("export {snapshot} {} --force", file.display());
    with_token(lab, token, &export).ok();
    fs::read(file).unwrap()
}

/// What an import does not tell is the same whether or not another account has the content.
fn imports_tell_nothing(options: fn(Options) -> Options) {
    const BYTES: usize = 20 << 20;
    let lab = Lab::with(options);
    account(&lab, "web");
    account(&lab, "db");
    let [web, db] = ["web", "db"].map(|name| token(&lab, name, name));
    let (file, other) = (lab.scratch.join("a.img"), lab.scratch.join("b.img"));
    fs::write(&file, noise(1, BYTES)).unwrap();
    fs::write(&other, noise(2, BYTES)).unwrap();
    import(&lab, &web, &file, "--name base");
    let known = import(&lab, &db, &file, "--name known");
    let unknown = import(&lab, &db, &other, "--name unknown");
    for report in [&known, &unknown] {
        assert_eq!(
            (
                report["new_bytes"].as_u64(),
                report["stored_bytes"].as_u64()
            ),
            (Some(0), Some(0))
        );
        assert!(
            report["sent_bytes"].as_u64().unwrap() >= BYTES as u64 / 2,
            "{report}"
        );
        let id = text(&report["snapshot"], "id");
        let shown = with_token(&lab, &db, &format!("snapshot show {id} -o json")).success();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(
            (shown["new_bytes"].as_u64(), shown["stored_bytes"].as_u64()),
            (Some(0), Some(0))
        );
    }
    assert!(exported(&lab, &db, "known") == fs::read(&file).unwrap());

    // What changed since a snapshot of its own, or one that is shared, is all that goes out.
    let mut next = fs::read(&file).unwrap();
    next[9 << 20..][..100].fill(0);
    let changed = lab.scratch.join("c.img");
    fs::write(&changed, &next).unwrap();
    let report = import(&lab, &db, &changed, "--name next --similar-to known");
    assert!(report["sent_bytes"].as_u64().unwrap() < 2 << 20, "{report}");
    assert!(exported(&lab, &db, "next") == next);
    let refused = format!(
        "import {} --name stolen --similar-to base",
        changed.display()
    );
    with_token(&lab, &db, &refused).fails(exit::NOT_FOUND);
}

#[test]
fn imports_of_accounts_do_not_tell_what_the_store_has() {
    imports_tell_nothing(Options::tcp);
}

#[test]
fn imports_that_write_everything_make_the_same_snapshots() {
    imports_tell_nothing(|options| options.tcp().env("VARVE_UPLOAD_DEDUPE_ANSWERS", "hide"));
}

#[tokio::test]
async fn an_upload_is_its_accounts_and_ids_alone_bring_no_content() {
    let lab = Lab::with(Options::tcp);
    account(&lab, "web");
    account(&lab, "db");
    let tokens = ["web", "db"].map(|name| {
        let token = fs::read_to_string(token(&lab, name, name)).unwrap();
        MetadataValue::try_from(format!("Bearer {}", token.trim())).unwrap()
    });
    let channel = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
    let channel = channel.connect().await.unwrap();
    let [mut web, mut db] = tokens.map(|token| {
        ContentServiceClient::with_interceptor(channel.clone(), move |mut request: Request<()>| {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
            Ok(request)
        })
    });
    let begin = |name: &str| v1::BeginUploadRequest {
        name: name.to_owned(),
        size_bytes: 4096,
        chunker: Some(v1::ChunkerParameters {
            version: varve_content::chunker::CHUNKER_VERSION,
        }),
        ..v1::BeginUploadRequest::default()
    };
    let plain = noise(3, 4096);
    let id = varve_content::ChunkId::of(&plain).as_bytes().to_vec();
    let upload_id = web
        .begin_upload(begin("a"))
        .await
        .unwrap()
        .into_inner()
        .upload_id;
    let chunk = v1::Chunk {
        id: id.clone().into(),
        codec: v1::Codec::Raw.into(),
        plain_bytes: 4096,
        payload: plain.into(),
    };
    let put = v1::PutChunksRequest {
        upload_id: upload_id.clone(),
        chunks: vec![chunk],
    };
    let put = web.put_chunks(tokio_stream::iter([put])).await.unwrap();
    assert_eq!(
        put.into_inner(),
        v1::PutChunksResponse {
            chunks: 1,
            new_bytes: 0
        }
    );
    let leaf = v1::Leaf {
        segment: 0,
        entries: vec![v1::LeafEntry {
            start_block: 0,
            blocks: 1,
            chunk_id: id.clone().into(),
        }],
    };
    let leaves = |upload_id: &str| v1::PutLeavesRequest {
        upload_id: upload_id.to_owned(),
        leaves: vec![leaf.clone()],
    };

    // Another account knows the upload, and it does not exist for it.
    let find = |upload_id: &str| v1::FindMissingRequest {
        upload_id: upload_id.to_owned(),
        ids: id.clone().into(),
        segments: vec![0],
    };
    let absent = "up-00000000000000000000000000000000";
    for upload in [&*upload_id, absent] {
        let code = |status: tonic::Status| {
            assert!(status.message().contains(upload), "{status}");
            status.code()
        };
        assert_eq!(
            code(db.find_missing(find(upload)).await.unwrap_err()),
            Code::NotFound
        );
        assert_eq!(
            code(db.put_leaves(leaves(upload)).await.unwrap_err()),
            Code::NotFound
        );
        let abort = v1::AbortUploadRequest {
            upload_id: upload.to_owned(),
        };
        assert_eq!(
            code(db.abort_upload(abort).await.unwrap_err()),
            Code::NotFound
        );
    }
    // Its own upload may not name the chunk.
    let own = db
        .begin_upload(begin("b"))
        .await
        .unwrap()
        .into_inner()
        .upload_id;
    let missing = db.find_missing(find(&own)).await.unwrap().into_inner();
    assert_eq!(missing.missing, [0]);
    let refused = db.put_leaves(leaves(&own)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("was not uploaded"), "{refused}");

    web.put_leaves(leaves(&upload_id)).await.unwrap();
    let missing = web
        .find_missing(find(&upload_id))
        .await
        .unwrap()
        .into_inner();
    assert!(missing.missing.is_empty());
}

/// The form of a chunk in the store, and the figures of a download, do not tell who was first.
#[tokio::test]
async fn downloads_do_not_tell_what_the_store_had() {
    let lab = Lab::with(Options::tcp);
    account(&lab, "web");
    account(&lab, "db");
    let [web, db] = ["web", "db"].map(|name| token(&lab, name, name));
    // Compressible, and different in each place.
    let image = |seed: u64| -> Vec<u8> {
        let words = (0..1_u64 << 17).flat_map(|at| ((seed << 40) | (at / 64)).to_le_bytes());
        words.collect()
    };
    let (file, other) = (lab.scratch.join("a.img"), lab.scratch.join("b.img"));
    fs::write(&file, image(1)).unwrap();
    fs::write(&other, image(2)).unwrap();
    import(&lab, &web, &file, "--name base --tag k=secret");
    let share = with_token(&lab, &web, "snapshot show base -o json").success();
    let share: serde_json::Value = serde_json::from_slice(&share.stdout).unwrap();
    let shared = text(&share, "id");
    import(&lab, &db, &file, "--name known");
    import(&lab, &db, &other, "--name unknown");
    with_token(&lab, &web, "snapshot share base all").ok();
    let bearer = fs::read_to_string(&db).unwrap();
    let bearer = MetadataValue::try_from(format!("Bearer {}", bearer.trim())).unwrap();
    let channel = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
    let mut content = ContentServiceClient::new(channel.connect().await.unwrap());
    let mut forms = Vec::new();
    for snapshot in ["known", "unknown", &shared] {
        let mut request = Request::new(v1::DownloadRequest {
            snapshot: snapshot.to_owned(),
            plain: false,
        });
        request
            .metadata_mut()
            .insert("authorization", bearer.clone());
        let mut parts = content.download(request).await.unwrap().into_inner();
        let mut codecs = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            match part.part.unwrap() {
                v1::download_response::Part::Snapshot(it) => {
                    assert_eq!((it.new_bytes, it.stored_bytes), (0, 0), "{snapshot}");
                    assert!(it.tags.is_empty() && !it.shared_with_everybody, "{it:?}");
                }
                v1::download_response::Part::Leaf(_) => {}
                v1::download_response::Part::Chunks(batch) => {
                    codecs.extend(batch.chunks.iter().map(|chunk| chunk.codec));
                }
            }
        }
        codecs.dedup();
        forms.push(codecs);
    }
    assert_eq!(
        forms[0], forms[1],
        "packed by the store, whoever came first"
    );
}
