//! Checkpoints by hub id, against a server on this machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::hub_server::{COMMIT, Fault, HubServer, REPO, etag};
use crate::runner::{Model, Output, finish, tessera};

const WEIGHTS: &str = "model.safetensors";

/// A model, a hub that has it, and an empty cache.
struct World {
    model: Model,
    server: HubServer,
    home: TempDir,
}

impl World {
    fn new(token: Option<&str>, fault: Option<Fault>) -> Self {
        let model = Model::tiny();
        // Only the weights are large enough to break off in an interesting place.
        let server = HubServer::start(model.path(), token, fault);
        Self { server, model, home: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    fn command(&self, id: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = tessera(&["generate", "-m", id, "--temperature", "0", "-n", "6", "--json", "hi"]);
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.server.endpoint);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.4").envs(variables.iter().copied());
        command
    }

    fn run(&self, variables: &[(&str, &str)]) -> Output {
        finish(self.command(REPO, variables))
    }

    /// The answer is that of the model the hub has.
    #[track_caller]
    fn check_answer(&self, output: Output) {
        let local = finish(self.command(self.model.arg(), &[])).json();
        assert_eq!(output.json()["tokens"], local["tokens"]);
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--acme--tiny")
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.repo().join("blobs").join(etag(file, self.server.file(file)))
    }

    fn incomplete(&self, file: &str) -> PathBuf {
        let blob = self.blob(file);
        blob.with_file_name(format!("{}.incomplete", blob.file_name().unwrap().to_str().unwrap()))
    }

    /// As an earlier run that was killed leaves it.
    fn leave_incomplete(&self, content: &[u8]) {
        fs::create_dir_all(self.repo().join("blobs")).unwrap();
        fs::write(self.incomplete(WEIGHTS), content).unwrap();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_download_fills_the_cache_as_others_expect_it() {
    let world = World::new(Some("hf_secret"), None);
    world.check_answer(world.run(&[("HF_TOKEN", "hf_secret")]));
    assert_eq!(fs::read_to_string(world.repo().join("refs/main")).unwrap(), COMMIT);
    let snapshot = world.repo().join("snapshots").join(COMMIT);
    let wanted = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"];
    assert_eq!(names(&snapshot), wanted, "nothing that is not needed");
    for name in wanted {
        let tag = etag(name, world.server.file(name));
        assert_eq!(fs::read_link(snapshot.join(name)).unwrap(), Path::new(&format!("../../blobs/{tag}")));
        assert_eq!(fs::read(snapshot.join(name)).unwrap(), world.server.file(name));
    }
    let storage: Vec<_> = world.server.requests().into_iter().filter(|r| r.path.starts_with("/storage")).collect();
    assert!(!storage.is_empty() && storage.iter().all(|r| r.authorization.is_none()), "the token stays with the hub");
    assert!(names(&world.repo().join("blobs")).iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn what_is_cached_needs_no_network() {
    let world = World::new(None, None);
    world.run(&[]).ok();
    let asked = world.server.requests().len();
    world.check_answer(world.run(&[]));
    world.check_answer(world.run(&[("HF_HUB_OFFLINE", "1")]));
    assert_eq!(world.server.requests().len(), asked);
    let at_commit = format!("{REPO}@{COMMIT}");
    world.check_answer(finish(world.command(&at_commit, &[("HF_HUB_OFFLINE", "1")])));
}

#[test]
fn offline_without_a_cache_says_so() {
    let world = World::new(None, None);
    world.run(&[("HF_HUB_OFFLINE", "1")]).fails_with(&[REPO, "HF_HUB_OFFLINE", "not in the cache"]);
    assert_eq!(world.server.requests(), []);
}

#[test]
fn a_dropped_connection_is_resumed() {
    let world = World::new(None, Some(Fault::Drops(3)));
    world.check_answer(world.run(&[]));
    let all: Vec<_> = [WEIGHTS, "tokenizer.json"].iter().flat_map(|f| world.server.ranges_of(f)).collect();
    assert_eq!(all.iter().filter(|range| range.is_some()).count(), 3, "{all:?}");
}

#[test]
fn a_stalled_connection_is_resumed() {
    let world = World::new(None, Some(Fault::Stalls(2)));
    world.check_answer(world.run(&[]));
    let all: Vec<_> = [WEIGHTS, "tokenizer.json"].iter().flat_map(|f| world.server.ranges_of(f)).collect();
    assert_eq!(all.iter().filter(|range| range.is_some()).count(), 2, "{all:?}");
}

#[test]
fn silence_is_given_up() {
    let world = World::new(None, Some(Fault::Silent));
    world.run(&[]).fails_with(&["tokenizer.json", "broke off", "it resumes where it stopped"]);
}

#[test]
fn an_earlier_run_is_resumed() {
    let world = World::new(None, None);
    world.leave_incomplete(&world.server.file(WEIGHTS)[..1000]);
    world.check_answer(world.run(&[]));
    assert_eq!(world.server.ranges_of(WEIGHTS), [Some("bytes=1000-".to_owned())]);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let world = World::new(None, Some(Fault::IgnoresRange));
    world.leave_incomplete(&world.server.file(WEIGHTS)[..1000]);
    world.check_answer(world.run(&[]));
}

#[test]
fn more_than_the_file_is_no_beginning_of_it() {
    let world = World::new(None, None);
    world.leave_incomplete(&vec![7; world.server.file(WEIGHTS).len() + 1]);
    world.check_answer(world.run(&[]));
}

#[test]
fn wrong_bytes_are_refused_and_discarded() {
    let world = World::new(None, None);
    world.leave_incomplete(&[0; 1000]);
    world.run(&[]).fails_with(&[WEIGHTS, "SHA-256", &etag(WEIGHTS, world.server.file(WEIGHTS))]);
    assert!(!world.blob(WEIGHTS).exists() && !world.incomplete(WEIGHTS).exists());
    world.check_answer(world.run(&[]));
    let world = World::new(None, Some(Fault::WrongBytes));
    world.run(&[]).fails_with(&["SHA-256"]);
    assert!(!world.blob("tokenizer.json").exists());
}

#[test]
fn a_refusal_names_the_token() {
    let world = World::new(Some("hf_secret"), None);
    world.run(&[]).fails_with(&[REPO, "401", "HF_TOKEN"]);
    world.run(&[("HF_TOKEN", "hf_wrong")]).fails_with(&[REPO, "401", "HF_TOKEN"]);
    fs::write(world.home.path().join("token"), "hf_secret\n").unwrap();
    world.check_answer(world.run(&[]));
}

#[test]
fn what_the_hub_lacks_is_named() {
    let world = World::new(None, None);
    finish(world.command("acme/other", &[])).fails_with(&["acme/other", "404"]);
    finish(world.command("acme/tiny@v9", &[])).fails_with(&["acme/tiny@v9", "404", "revision"]);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let world = World::new(None, None);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{nobody}");
    world.run(&[("HF_ENDPOINT", &endpoint)]).fails_with(&[&endpoint, "check the connection"]);
}

#[test]
fn a_full_disk_is_named() {
    let world = World::new(None, None);
    fs::create_dir_all(world.repo().join("blobs")).unwrap();
    std::os::unix::fs::symlink("/dev/full", world.incomplete(WEIGHTS)).unwrap();
    world.run(&[]).fails_with(&["disk full", WEIGHTS, "HF_HOME", "still to come"]);
}

#[test]
fn two_downloads_do_not_write_the_same_file() {
    let world = World::new(None, None);
    let locks = world.home.path().join("hub/.locks/models--acme--tiny");
    fs::create_dir_all(&locks).unwrap();
    let lock = File::create(locks.join(format!("{}.lock", etag(WEIGHTS, world.server.file(WEIGHTS))))).unwrap();
    lock.lock().unwrap();
    let mut command = world.command(REPO, &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("another process is downloading model.safetensors")));
    assert_eq!(world.server.ranges_of(WEIGHTS), [], "it waits");
    drop(lock);
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    assert_eq!(world.server.ranges_of(WEIGHTS), [None]);
}
