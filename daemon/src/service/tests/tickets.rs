//! Attach tickets, as callers show them.

use std::{fs, path::Path};

use varve_nbd::{ExportName, split_ticket};
use varve_store::AccountState;

use super::*;
use crate::auth::TicketError;

const WITH_TICKET: AttachRequest = AttachRequest {
    with_ticket: true,
    ..TAKE_OVER
};

/// A caller that no account knows. Each one is a source of wrong tickets of its own.
fn nobody(number: u32) -> Caller {
    let peer = Peer::Unix {
        process: None,
        user: 40_000 + number,
        group: 40_000,
    };
    Caller::new(Face::Nbd, peer)
}

/// The key and the ticket in the name of an export.
fn taken_apart(export: &str) -> (&str, &str) {
    let Some(ExportName::Volume(key)) = ExportName::parse(export) else {
        panic!("{export}");
    };
    split_ticket(key).unwrap()
}

impl Fixture {
    /// Volume `db` of account `web`, attached. Returns its id and the export's name.
    async fn ticketed(&self) -> (String, String) {
        let web = NewAccount {
            name: "web".to_owned(),
            ..NewAccount::default()
        };
        let made = self.service.create_account(&self.caller, web).await;
        made.unwrap();
        self.volume("db").await;
        let given = self.service.give_volume(&self.caller, "db", "web").await;
        let id = given.unwrap().id.to_string();
        (id.clone(), self.attach(&id).await)
    }

    async fn attach(&self, id: &str) -> String {
        let attached = self.service.attach_volume(&self.caller, id, WITH_TICKET);
        attached.await.unwrap().export
    }

    async fn open(&self, caller: &Caller, export: &str) -> Result<AttachedVolume> {
        let (key, ticket) = taken_apart(export);
        let opened = self.service.open_ticketed_export(caller, key, ticket);
        opened.await
    }

    fn data_dir(&self) -> &Path {
        &self.service.0.parts.facts.data_dir
    }

    async fn is_refused(&self, number: u32, export: &str) {
        let refused = self.open(&nobody(number), export).await.unwrap_err();
        let is_alike = matches!(refused, Error::Ticket(TicketError::Invalid));
        assert!(is_alike, "{export}: {refused}");
    }
}

#[tokio::test]
async fn a_ticket_opens_its_attachment_for_nobody_and_nothing_else() {
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    let (id, export) = fixture.ticketed().await;
    assert!(export.starts_with(&format!("volume/{id}@1:varve_ticket_")));
    let opened = fixture.open(&nobody(0), &export).await.unwrap();
    assert_eq!(opened.record().id.to_string(), id);
    drop(opened.volume().await.unwrap());

    // The ticket of another volume, and wrong ones.
    fixture.volume("other").await;
    let other = fixture.attach("other").await;
    fixture.open(&nobody(0), &other).await.unwrap();
    let (key, ticket) = taken_apart(&export);
    let (other_key, other_ticket) = taken_apart(&other);
    for (number, (key, ticket)) in (1..).zip([
        (key, other_ticket),
        (other_key, ticket),
        (key, &ticket[..ticket.len() - 1]),
        (key, &*ticket.replace("ticket_", "ticket_0")),
        (key, "varve_ticket_"),
        (&*key.replace("@1", "@2"), ticket),
        (&*key.replace("@1", ""), ticket),
        ("db@1", ticket),
        ("", ticket),
        ("vol-00000000000000000@1", ticket),
    ]) {
        fixture
            .is_refused(number, &format!("volume/{key}:{ticket}"))
            .await;
    }
    // The administrator's own rights do not count either.
    let wrong = format!("volume/{key}:{other_ticket}");
    let refused = fixture.open(caller, &wrong).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated, "{refused}");

    // The bearer does nothing else.
    let bearer = service.bearer(&nobody(0), key, ticket).await.unwrap().0;
    let refused = service.delete_volume(&bearer, &id).await.unwrap_err();
    assert!(refused.to_string().contains("ticket"), "{refused}");
    let refused = service.exported_volumes(&bearer, None, 9).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);

    // Another attachment has another ticket, and none has none.
    let again = fixture.attach(&id).await;
    let ended = opened.volume().await.err().unwrap();
    assert!(matches!(ended, Error::Detached), "{ended}");
    fixture.is_refused(20, &export).await;
    fixture.open(&nobody(0), &again).await.unwrap();
    service.detach_volume(caller, &id).await.unwrap();
    fixture.is_refused(21, &again).await;
    service.delete_volume(caller, &id).await.unwrap();
    fixture.is_refused(22, &again).await;
}

#[tokio::test]
async fn a_ticket_acts_for_the_owner_of_the_volume() {
    let fixture = Fixture::new().await;
    let (id, export) = fixture.ticketed().await;
    let states = [AccountState::Disabled, AccountState::ReadOnly];
    for (number, state) in (1..).zip(states) {
        let become_ = |state| {
            let change = AccountChange {
                state: Some(state),
                ..AccountChange::default()
            };
            fixture
                .service
                .update_account(&fixture.caller, "web", change)
        };
        become_(state).await.unwrap();
        fixture.is_refused(number, &export).await;
        become_(AccountState::Active).await.unwrap();
        fixture.open(&nobody(number), &export).await.unwrap();
    }
    let detached = fixture.service.detach_volume(&fixture.caller, &id).await;
    detached.unwrap();
    let given = fixture
        .service
        .give_volume(&fixture.caller, &id, "admin")
        .await;
    given.unwrap();
    let ours = fixture.attach(&id).await;
    fixture.is_refused(9, &export).await;
    fixture.open(&nobody(9), &ours).await.unwrap();
}

#[tokio::test]
async fn without_accounts_there_are_no_tickets_and_no_key() {
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    fixture.volume("db").await;
    let refused = service.attach_volume(caller, "db", WITH_TICKET).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    let volume = service.volume(caller, "db").await.unwrap().record;
    assert_eq!(volume.attached_at_ns, None);
    assert!(!fixture.data_dir().join("auth.key").exists());
    // Everybody still is the administrator.
    service.volume(&nobody(0), "db").await.unwrap();
    let export = format!("volume/{}@0:varve_ticket_{}", volume.id, "0".repeat(64));
    fixture.is_refused(0, &export).await;
}

#[tokio::test]
async fn tickets_in_the_clear_are_refused_and_wrong_ones_are_slow() {
    let fixture = Fixture::new().await;
    let (_, export) = fixture.ticketed().await;
    let far = |number: u8| {
        let address = format!("192.0.2.{number}:4").parse().unwrap();
        Caller::new(Face::Nbd, Peer::Tcp(address))
    };
    let refused = fixture.open(&far(1), &export).await.unwrap_err();
    assert!(refused.to_string().contains("over TLS"), "{refused}");
    let secure = far(1).over_tls(None);
    fixture.open(&secure, &export).await.unwrap();

    let wrong = export.replace("@1", "@2");
    let began = std::time::Instant::now();
    for _ in 0..3 {
        fixture.open(&secure, &wrong).await.unwrap_err();
    }
    // 50, 100 and 200 ms.
    let took = began.elapsed();
    assert!(took.as_millis() >= 350, "{took:?}");
    // A right one does not wait, and neither does another source.
    let began = std::time::Instant::now();
    fixture.open(&secure, &export).await.unwrap();
    fixture
        .open(&far(2).over_tls(None), &wrong)
        .await
        .unwrap_err();
    let took = began.elapsed();
    assert!(took.as_millis() < 300, "{took:?}");
}

#[tokio::test]
async fn a_ticket_is_in_no_log() {
    let log = Captured::new();
    let fixture = Fixture::new().await;
    let (id, export) = fixture.ticketed().await;
    let secret = export.rsplit_once('_').unwrap().1;
    fixture.open(&nobody(0), &export).await.unwrap();
    fixture.is_refused(1, &export.replace("@1", "@2")).await;
    // Where it does not belong.
    for wrong in [&export, &export.to_uppercase()] {
        let detached = fixture.service.detach_volume(&fixture.caller, wrong).await;
        detached.unwrap_err();
        let opened = fixture.service.open_volume_export(&nobody(0), wrong).await;
        opened.unwrap_err();
    }
    let lines = log.lines().join("\n").to_lowercase();
    assert!(lines.contains("varve_ticket_..."), "{lines}");
    assert!(!lines.contains(secret), "{lines}");
    // Refusals are written within a second.
    let file = fixture.data_dir().join("audit/audit.jsonl");
    for round in 0.. {
        let told = fs::read_to_string(&file).unwrap();
        assert!(!told.to_lowercase().contains(secret), "{told}");
        if told.contains(r#""action":"DetachVolume""#) && told.contains("not valid") {
            let opened = format!(r#""resources":"volume {id}@1","result":"ok""#);
            let line = told.lines().find(|line| line.contains(&opened));
            let line = line.unwrap_or_else(|| panic!("{told}"));
            assert!(line.contains(r#""identity":"ticket""#), "{line}");
            break;
        }
        assert!(round < 500, "{told}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
