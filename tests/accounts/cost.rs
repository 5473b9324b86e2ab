//! What accounts cost a call: a measurement, run by
//! `cargo test --release -p varve-tests --test behaviour -- --ignored --nocapture accounts::cost`.

use std::{
    fs,
    time::{Duration, Instant},
};

use tonic::{Request, metadata::MetadataValue, transport::Endpoint};
use varve_proto::v1::{self, volume_service_client::VolumeServiceClient};
use varve_tests::{daemon::Options, lab::Lab};

use super::{account, admin, token, with_token};

const ROUNDS: usize = 20;
const CALLS: usize = 500;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_call_with_and_without_accounts() {
    // The two daemons take turns.
    let (alone, shared) = (Lab::with(Options::tcp), Lab::with(Options::tcp));
    account(&shared, "web");
    let bearer = token(&shared, "web", "web");
    admin(&alone, "volume create data --size 1M");
    with_token(&shared, &bearer, "volume create data --size 1M").ok();
    let bearer = fs::read_to_string(bearer).unwrap();
    let value = MetadataValue::try_from(format!("Bearer {}", bearer.trim())).unwrap();
    let mut clients = Vec::new();
    for lab in [&alone, &shared] {
        let channel = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
        clients.push(VolumeServiceClient::new(channel.connect().await.unwrap()));
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (which, (client, times)) in clients.iter_mut().zip(&mut times).enumerate() {
            for _ in 0..CALLS {
                let mut request = Request::new(v1::GetVolumeRequest {
                    volume: "data".to_owned(),
                });
                if which == 1 {
                    let headers = request.metadata_mut();
                    headers.insert("authorization", value.clone());
                }
                let started = Instant::now();
                client.get_volume(request).await.unwrap();
                times.push(started.elapsed());
            }
        }
    }
    let [alone, shared] = times.map(median);
    let ratio = shared.as_secs_f64() / alone.as_secs_f64();
    println!("p50 of GetVolume: {alone:?} without accounts, {shared:?} with a token: {ratio:.3} x");
}
