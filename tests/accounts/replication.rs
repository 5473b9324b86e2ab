//! Replication as accounts: another store, or an archive, gets what its account may read, and no
//! more. An id of a node or a chunk is no right to it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use bytes::Bytes;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use varve_content::tree::{InnerNode, NodeId, Root};
use varve_proto::v1::{
    self, replication_service_client::ReplicationServiceClient,
    snapshot_service_client::SnapshotServiceClient,
};
use varve_tests::{
    daemon::Options,
    identity::Identity,
    lab::Lab,
    process::wait_for,
    scratch::Scratch,
    snapctl::{exit, number, text},
};

use super::{account, admin, token, with_token};

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 8 * MIB;

/// A caller with a token.
#[derive(Clone)]
struct Store {
    channel: Channel,
    token: String,
}

impl Store {
    async fn new(lab: &Lab, file: &Path) -> Self {
        let endpoint = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
        Self {
            channel: endpoint.connect().await.unwrap(),
            token: fs::read_to_string(file).unwrap().trim().to_owned(),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.token)).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    fn replication(&self) -> ReplicationServiceClient<Channel> {
        ReplicationServiceClient::new(self.channel.clone())
    }

    async fn snapshot(&self, snapshot: &str) -> Result<v1::Snapshot, Status> {
        let request = v1::GetSnapshotRequest {
            snapshot: snapshot.to_owned(),
        };
        let mut service = SnapshotServiceClient::new(self.channel.clone());
        let answer = service.get_snapshot(self.request(request)).await?;
        Ok(answer.into_inner())
    }

    /// Holds a snapshot while the stream is kept.
    async fn hold(
        &self,
        snapshot: &str,
    ) -> Result<(v1::Snapshot, Streaming<v1::HoldResponse>), Status> {
        let request = v1::HoldRequest {
            snapshot: snapshot.to_owned(),
        };
        let answer = self.replication().hold(self.request(request)).await?;
        let mut stream = answer.into_inner();
        let first = stream.message().await?.unwrap();
        Ok((first.snapshot.unwrap(), stream))
    }

    async fn nodes(&self, of: &[&str], nodes: &[v1::NodeRef]) -> Result<Vec<v1::Node>, Status> {
        let request = v1::FetchNodesRequest {
            nodes: nodes.to_vec(),
            snapshots: of.iter().map(ToString::to_string).collect(),
        };
        let answer = self
            .replication()
            .fetch_nodes(self.request(request))
            .await?;
        Ok(answer.into_inner().nodes)
    }

    async fn node(&self, of: &[&str], node: &v1::NodeRef) -> Result<v1::Node, Status> {
        Ok(self.nodes(of, std::slice::from_ref(node)).await?.remove(0))
    }

    /// Fetches the first chunk of a leaf.
    async fn chunk(&self, of: &[&str], leaf: &v1::NodeRef) -> Result<v1::Chunk, Status> {
        let request = v1::FetchChunksRequest {
            leaves: vec![v1::LeafChunks {
                leaf_id: leaf.id.clone(),
                entries: vec![0],
                segment: leaf.first_segment,
            }],
            snapshots: of.iter().map(ToString::to_string).collect(),
        };
        let answer = self
            .replication()
            .fetch_chunks(self.request(request))
            .await?;
        let message = answer.into_inner().message().await?.unwrap();
        Ok(message.chunks.into_iter().next().unwrap())
    }

    /// The nodes of a small snapshot with several leaves: root, top, and leaves. As the
    /// administrator, who fetches them in the way of older stores.
    async fn tree(&self, snapshot: &str) -> Tree {
        let snapshot = self.snapshot(snapshot).await.unwrap();
        let root = v1::NodeRef {
            kind: v1::NodeKind::Root.into(),
            id: snapshot.root.clone(),
            ..v1::NodeRef::default()
        };
        let encoded = self.node(&[], &root).await.unwrap().encoded;
        let top = Root::decode(&encoded).unwrap().top.unwrap();
        let top = node(v1::NodeKind::Inner, top, 1, 0);
        let encoded = self.node(&[], &top).await.unwrap().encoded;
        let leaves = InnerNode::decode(&encoded).unwrap();
        let leaves = leaves.children().iter();
        let leaves = leaves.map(|(slot, id)| node(v1::NodeKind::Leaf, *id, 0, (*slot).into()));
        Tree {
            root,
            top,
            leaves: leaves.collect(),
        }
    }
}

fn node(kind: v1::NodeKind, id: NodeId, level: u32, first_segment: u32) -> v1::NodeRef {
    v1::NodeRef {
        kind: kind.into(),
        id: Bytes::copy_from_slice(id.as_bytes()),
        level,
        first_segment,
    }
}

struct Tree {
    root: v1::NodeRef,
    top: v1::NodeRef,
    leaves: Vec<v1::NodeRef>,
}

impl Tree {
    fn nodes(&self) -> Vec<v1::NodeRef> {
        let all = [&self.root, &self.top].into_iter().chain(&self.leaves);
        all.cloned().collect()
    }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Status>) -> Code {
    outcome.unwrap_err().code()
}

/// A store with the accounts `web` and `db`, and a snapshot of several segments of each.
fn store() -> Lab {
    store_with(Options::tcp)
}

fn store_with(change: impl FnOnce(Options) -> Options) -> Lab {
    let lab = Lab::with(change);
    for (name, seed) in [("web", 901), ("db", 902)] {
        account(&lab, name);
        give(&lab, name, name, seed);
    }
    lab
}

/// Makes a snapshot, and gives it to an account.
fn give(lab: &Lab, to: &str, name: &str, seed: u64) {
    let image = lab.image(name, 2 * SEGMENT + MIB, seed);
    lab.snapctl().import(&image, name);
    admin(lab, &format!("account give {to} snapshot/{name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_fetches_what_it_may_read_and_no_more() {
    let lab = store();
    let of = async |name: &str, arguments: &str| {
        Store::new(&lab, &token(&lab, &format!("{name}.token"), arguments)).await
    };
    let root = of("root", "admin").await;
    let web = of("web", "web --scope copy").await;
    let db = of("db", "db").await;
    let [web_id, db_id] = {
        let listed = lab.snapctl().json(["snapshot", "list", "--owner", "all"]);
        ["web", "db"].map(|name| {
            let all = listed["snapshots"].as_array().unwrap();
            text(all.iter().find(|it| it["name"] == name).unwrap(), "id")
        })
    };
    let (mine, other) = (root.tree(&web_id).await, root.tree(&db_id).await);
    assert_eq!((mine.leaves.len(), other.leaves.len()), (3, 3));

    // By name and by id, as the administrator gets them.
    let expected = root.nodes(&[], &mine.nodes()).await.unwrap();
    for of in [&["web"][..], &[&web_id], &["web", &web_id]] {
        assert_eq!(web.nodes(of, &mine.nodes()).await.unwrap(), expected);
    }
    let chunk = root.chunk(&[], &mine.leaves[2]).await.unwrap();
    assert_eq!(web.chunk(&["web"], &mine.leaves[2]).await.unwrap(), chunk);
    let (held, _stream) = web.hold("web").await.unwrap();
    assert_eq!((held.id, held.new_bytes), (web_id.clone(), 0));

    // Of another: as what does not exist, whichever snapshot is named.
    let absent_id = "snap-00000000000000000";
    for node in other.nodes() {
        let mut absent = node.clone();
        absent.id = Bytes::from_static(&[7; 32]);
        let refused = web.node(&["web"], &node).await.unwrap_err();
        let unknown = web.node(&["web"], &absent).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let shown = |id: &Bytes| {
            id.iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        assert_eq!(
            refused.message().replace(&shown(&node.id), "ID"),
            unknown.message().replace(&shown(&absent.id), "ID"),
        );
        for of in [&[&*db_id][..], &["web", &db_id], &["db"]] {
            assert_eq!(code(web.node(of, &node).await), Code::NotFound);
        }
    }
    let refused = web.node(&[&db_id], &mine.root).await.unwrap_err();
    let unknown = web.node(&[absent_id], &mine.root).await.unwrap_err();
    assert_eq!(
        refused.message().replace(&db_id, "ID"),
        unknown.message().replace(absent_id, "ID")
    );
    assert_eq!(code(web.hold(&db_id).await), Code::NotFound);
    for of in [&["web"][..], &[&*db_id], &["web", &db_id]] {
        assert_eq!(code(web.chunk(of, &other.leaves[0]).await), Code::NotFound);
    }
    // One that is not its own among others.
    let mut mixed = mine.nodes();
    mixed.push(other.leaves[0].clone());
    assert_eq!(code(web.nodes(&["web"], &mixed).await), Code::NotFound);

    // Its own, at another place.
    let elsewhere = |node: &v1::NodeRef, level, first_segment| v1::NodeRef {
        level,
        first_segment,
        ..node.clone()
    };
    for wrong in [
        elsewhere(&mine.leaves[0], 0, 1),
        elsewhere(&mine.leaves[0], 0, u32::MAX),
        elsewhere(&mine.leaves[0], 1, 0),
        elsewhere(&mine.top, 2, 0),
        elsewhere(&mine.top, 1, 1),
        elsewhere(&mine.top, 0, 0),
        elsewhere(&mine.top, 255, 0),
    ] {
        assert_eq!(code(web.node(&["web"], &wrong).await), Code::NotFound);
    }
    let level = elsewhere(&mine.top, 256, 0);
    assert_eq!(
        code(web.node(&["web"], &level).await),
        Code::InvalidArgument
    );

    // Ids alone are the administrator's way.
    for refused in [
        code(web.nodes(&[], &mine.nodes()).await),
        code(web.chunk(&[], &mine.leaves[0]).await),
        code(db.nodes(&[], &mine.nodes()).await),
    ] {
        assert_eq!(refused, Code::InvalidArgument);
    }
    let said = web.node(&[], &mine.root).await.unwrap_err();
    assert!(said.message().contains("snapshots: it is empty"), "{said}");
    let many = ["web", "web", "web"];
    assert_eq!(code(web.node(&many, &mine.root).await), Code::OutOfRange);

    // The administrator reads all, by the ids of snapshots, too.
    let all = [&*web_id, &db_id];
    for node in mine.nodes().iter().chain(&other.nodes()) {
        root.node(&all, node).await.unwrap();
    }
    root.hold(&db_id).await.unwrap();
    assert_eq!(code(root.node(&["web"], &mine.root).await), Code::NotFound);

    // A token needs the scope. A read-only account may.
    let reading = of("read", "web --scope read").await;
    assert_eq!(
        code(reading.node(&["web"], &mine.root).await),
        Code::PermissionDenied
    );
    admin(&lab, "account set web --read-only");
    assert_eq!(web.nodes(&["web"], &mine.nodes()).await.unwrap(), expected);
    assert!(
        !lab.varved.log().contains("panicked"),
        "{}",
        lab.varved.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_opens_a_snapshot_to_its_account_until_it_ends() {
    let lab = store();
    let of = async |name: &str, arguments: &str| {
        Store::new(&lab, &token(&lab, &format!("{name}.token"), arguments)).await
    };
    let root = of("root", "admin").await;
    let web = of("web", "web").await;
    let db = of("db", "db").await;
    let web_id = web.snapshot("web").await.unwrap().id;
    let tree = root.tree(&web_id).await;
    let fetched = async |store: &Store| store.nodes(&[&web_id], &tree.nodes()).await;

    let (_, one) = web.hold("web").await.unwrap();
    let (_, two) = web.hold(&web_id).await.unwrap();
    let (_, _own) = db.hold("db").await.unwrap();
    admin(&lab, &format!("snapshot delete {web_id}"));
    // The holder goes on, on other connections and with other tokens, too.
    let expected = fetched(&web).await.unwrap();
    let again = of("again", "web --scope copy").await;
    assert_eq!(fetched(&again).await.unwrap(), expected);
    web.chunk(&[&web_id], &tree.leaves[0]).await.unwrap();
    // Nobody else does: not by the id of the snapshot, nor by a hold of something else.
    for store in [&db, &root] {
        assert_eq!(code(fetched(store).await), Code::NotFound);
        let refused = store.chunk(&[&web_id], &tree.leaves[0]).await;
        assert_eq!(code(refused), Code::NotFound);
    }
    assert_eq!(code(db.node(&["db"], &tree.top).await), Code::NotFound);
    assert_eq!(code(web.node(&["web"], &tree.top).await), Code::NotFound);
    // Older stores of the administrator.
    assert_eq!(root.nodes(&[], &tree.nodes()).await.unwrap(), expected);

    drop(one);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fetched(&web).await.unwrap(), expected);
    // A hold gives no right to an account that has none any more.
    admin(&lab, "account disable web");
    assert_eq!(code(fetched(&web).await), Code::PermissionDenied);
    admin(&lab, "account enable web");
    assert_eq!(fetched(&web).await.unwrap(), expected);

    drop(two);
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        wait_for("the hold to end", || {
            let outcome = handle.block_on(fetched(&web));
            outcome
                .is_err_and(|status| status.code() == Code::NotFound)
                .then_some(())
        });
    });
    assert_eq!(code(web.hold(&web_id).await), Code::NotFound);
    assert_eq!(
        code(web.chunk(&[&web_id], &tree.leaves[0]).await),
        Code::NotFound
    );
}

/// The certificate of a store is an account at the source.
#[test]
fn a_store_copies_what_its_account_at_the_source_may_read() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let there = store_with(|options| identity.serve_known(options));
    admin(&there, "account set web --add-identity cert:CN=varved");
    let here = Lab::new();
    let endpoint = there.varved.tcp_endpoint().replace("http://", "https://");
    let files = [&identity.authority, &identity.cert, &identity.key];
    let [ca, cert, key] = files.map(|path| path.to_str().unwrap());
    let snapctl = here.snapctl();
    let add = ["remote", "add", "source", &endpoint];
    let files = ["--ca", ca, "--cert", cert, "--key", key];
    snapctl.run(add.iter().chain(&files)).ok();

    let copy = |snapshot: &str| {
        let arguments = ["copy", snapshot, "--from", "source", "--wait"];
        snapctl.run(arguments)
    };
    let estimate = ["copy", "estimate", "web", "--from", "source"];
    assert!(number(&snapctl.json(estimate), "missing_chunks") > 0);
    copy("web").ok();
    here.assert_content("web", &there.scratch.join("web"));
    snapctl.verify("web");
    let listed = there.snapctl().json(["snapshot", "list", "--owner", "db"]);
    let others = text(&listed["snapshots"][0], "id");
    for snapshot in ["db", &others, "none"] {
        copy(snapshot).fails(exit::NOT_FOUND);
    }
    // A deletion while it is copied makes no difference: the account holds it.
    give(&there, "web", "more", 903);
    let begin = ["copy", "more", "--from", "source", "--limit", "2M"];
    let id = text(&snapctl.json(begin), "id");
    let shown = || snapctl.json(["copy", "show", &id]);
    wait_for("something to arrive", || {
        (number(&shown(), "received_bytes") > 0).then_some(())
    });
    let listed = there.snapctl().json(["snapshot", "list", "--owner", "web"]);
    let all = listed["snapshots"].as_array().unwrap().iter();
    for snapshot in all.filter(|it| it["name"] == "more") {
        admin(&there, &format!("snapshot delete {}", text(snapshot, "id")));
    }
    admin(&there, "gc run");
    snapctl.run(["copy", "limit", &id, "none"]).ok();
    let copied = wait_for("the copy to end", || {
        let shown = shown();
        let is_over = matches!(text(&shown, "state").as_str(), "completed" | "failed");
        is_over.then_some(shown)
    });
    assert_eq!(copied["state"], "completed", "{copied}");
    here.assert_content("more", &there.scratch.join("more"));
}

/// The token of a store is one of an account at the source.
#[test]
fn a_store_copies_by_the_token_that_its_remote_has() {
    let there = store();
    let file = token(&there, "web.token", "web --scope copy");
    let path = file.to_str().unwrap();
    let here = Lab::new();
    let snapctl = here.snapctl();
    let add = |name: &str, endpoint: &str, path: &str| {
        let arguments = ["remote", "add", name, endpoint, "--remote-token-file", path];
        snapctl.run(arguments)
    };
    let endpoint = there.varved.tcp_endpoint();
    add("source", &endpoint, path).ok();
    let shown = snapctl.json(["remote", "show", "source"]);
    assert_eq!(text(&shown, "token_file"), path);

    let copy = |snapshot: &str| {
        let arguments = ["copy", snapshot, "--from", "source", "--wait"];
        snapctl.run(arguments)
    };
    copy("web").ok();
    here.assert_content("web", &there.scratch.join("web"));
    copy("db").fails(exit::NOT_FOUND);

    // Files that cannot be used, and ways on which a token does not go.
    let secret = fs::read_to_string(&file).unwrap();
    let absent = there.scratch.join("absent");
    let open = there.scratch.file("open.token", &secret);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let other = there.scratch.file("other.token", "hunter2");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let path_of = |path: &Path| path.to_str().unwrap().to_owned();
    for (path, says) in [
        (path_of(&absent), "absent"),
        (path_of(&open), "chmod 600"),
        (path_of(&other), "not a token"),
        (secret.trim().to_owned(), "this is a token"),
    ] {
        let finished = add("bad", &endpoint, &path);
        let code = finished.status.code().unwrap();
        let said = finished.fails(code);
        assert!(said.contains(says), "{path}: {said}");
        assert!(!said.contains("hunter2") && !said.contains(secret.trim()));
    }
    let far = [
        "remote",
        "add",
        "bad",
        "http://192.0.2.1:7433",
        "--allow-plaintext",
    ];
    let with_token = ["--remote-token-file", path];
    let said = snapctl
        .run(far.iter().chain(&with_token))
        .fails(exit::USAGE);
    assert!(said.contains("token"), "{said}");

    // It is read at each try, and acts until it is revoked.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let estimate = ["copy", "estimate", "web", "--from", "source"];
    let said = snapctl.run(estimate).fails(exit::CONFLICT);
    assert!(said.contains("chmod 600"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    snapctl.run(estimate).ok();
    let list = there.snapctl().json(["account", "token", "list", "web"]);
    let id = text(&list["tokens"][0], "id");
    admin(&there, &format!("account token revoke {id}"));
    let said = snapctl.run(estimate).fails(super::DENIED);
    assert!(said.contains("not valid"), "{said}");
    for lab in [&here, &there] {
        assert!(!lab.varved.log().contains(secret.trim()));
    }
}

#[test]
fn an_account_writes_archives_of_what_it_may_read() {
    let there = store();
    give(&there, "web", "later", 904);
    let web = token(&there, "web.token", "web --scope copy");
    let db = token(&there, "db.token", "db");
    let reading = token(&there, "read.token", "web --scope read");
    let listed = there.snapctl().json(["snapshot", "list", "--owner", "web"]);
    let all = listed["snapshots"].as_array().unwrap();
    let web_id = text(all.iter().find(|it| it["name"] == "web").unwrap(), "id");
    let archive = |token: &Path, arguments: &str, name: &str| {
        let file = there.scratch.join(name);
        let arguments = format!("export --archive {arguments} {}", file.display());
        with_token(&there, token, &arguments)
    };
    archive(&web, "web", "web.varve").ok();
    archive(&web, "later --since web", "later.varve").ok();
    archive(&db, &web_id, "db.varve").fails(exit::NOT_FOUND);
    archive(&db, &format!("db --since {web_id}"), "db.varve").fails(exit::NOT_FOUND);
    let said = archive(&reading, "web", "read.varve").fails(super::DENIED);
    assert!(said.contains("scope"), "{said}");

    let here = Lab::new();
    for (name, file) in [("web", "web.varve"), ("later", "later.varve")] {
        let file = there.scratch.join(file);
        let import = ["import", "--archive", file.to_str().unwrap()];
        here.snapctl().run(import).ok();
        here.assert_content(name, &there.scratch.join(name));
    }
}
