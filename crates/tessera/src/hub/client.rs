//! Requests to the hub: what a revision holds, what a file is, and its bytes from an offset on.

use std::io::Read;

use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::{HubError, RepoId, Settings, is_name};

/// Redirects within the hub (renamed repositories) that are followed for one file.
const MAX_REDIRECTS: usize = 5;
/// Largest answer to a question about a revision.
const MAX_LISTING_BYTES: u64 = 32 << 20;

pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a revision stands for.
pub struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// One file of a commit.
pub struct RemoteFile {
    pub name: String,
    /// The name of its blob; for large files the SHA-256 of its bytes.
    pub etag: String,
    pub size: u64,
    /// Where the hub serves it, redirects within the hub followed.
    url: String,
}

/// A file's bytes from the offset where the server began.
pub struct Stream {
    pub offset: u64,
    pub bytes: Box<dyn Read + Send>,
}

impl Client {
    pub fn new(settings: &Settings) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(settings.read_timeout))
            .timeout_recv_response(Some(settings.read_timeout))
            .timeout_per_read(Some(settings.read_timeout))
            .user_agent(concat!("tessera/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), endpoint: settings.endpoint.clone(), token: settings.token.clone() }
    }

    /// The commit of the revision, and its files.
    pub fn list(&self, repo: &RepoId) -> Result<Listing, HubError> {
        #[derive(serde::Deserialize)]
        struct Revision {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, repo.name, quoted(&repo.revision));
        let request = self.authorised(self.agent.get(&url));
        let mut response = request.call().map_err(|e| network(&url, &e))?;
        check_status(repo, "the repository", &url, response.status())?;
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.map_err(|e| network(&url, &e))?;
        let protocol = |problem: String| HubError::Protocol { url: url.clone(), problem };
        let revision: Revision = serde_json::from_slice(&body).map_err(|e| protocol(e.to_string()))?;
        if !is_name(&revision.sha) {
            return Err(protocol(format!("commit {:?}", revision.sha)));
        }
        Ok(Listing { commit: revision.sha, files: revision.siblings.into_iter().map(|s| s.rfilename).collect() })
    }

    /// Size and ETag of a file. The hub answers for large files with a redirect elsewhere, whose own ETag means nothing:
    /// the redirect's `X-Linked-*` headers count.
    pub fn head(&self, repo: &RepoId, commit: &str, name: &str) -> Result<RemoteFile, HubError> {
        let mut url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, repo.name);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.head_once(&url)?;
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            if let Some(inside) = location.and_then(|location| self.inside(location)) {
                url = inside;
                continue;
            }
            if !response.status().is_redirection() {
                check_status(repo, name, &url, response.status())?;
            }
            return remote_file(name, url, response.headers());
        }
        Err(HubError::Protocol { problem: format!("more than {MAX_REDIRECTS} redirects"), url })
    }

    fn head_once(&self, url: &str) -> Result<Response<Body>, HubError> {
        let request = self.agent.head(url).header("accept-encoding", "identity");
        let request = self.authorised(request).config().max_redirects(0).build();
        request.call().map_err(|e| network(url, &e))
    }

    /// The file's bytes from `offset` on, if the server can; the stream says from where it really begins. The token goes
    /// to the hub only, never to the storage that it redirects to.
    pub fn stream(&self, repo: &RepoId, file: &RemoteFile, offset: u64) -> Result<Stream, HubError> {
        let mut request = self.authorised(self.agent.get(&file.url)).header("accept-encoding", "identity");
        if offset > 0 {
            request = request.header("range", format!("bytes={offset}-"));
        }
        let response = request.call().map_err(|e| network(&file.url, &e))?;
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => content_range_start(response.headers()).unwrap_or(offset),
            status => {
                check_status(repo, &file.name, &file.url, status)?;
                0
            }
        };
        let bytes = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Stream { offset, bytes: Box::new(bytes) })
    }

    fn authorised<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// The absolute form of a redirect that stays on the hub.
    fn inside(&self, location: &str) -> Option<String> {
        let origin_end = self.endpoint.find("://").map_or(0, |at| at + 3);
        let origin_end = self.endpoint[origin_end..].find('/').map_or(self.endpoint.len(), |at| origin_end + at);
        let origin = &self.endpoint[..origin_end];
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(format!("{origin}{location}"));
        }
        location.strip_prefix(origin).filter(|rest| rest.starts_with('/')).map(|_| location.to_owned())
    }
}

fn remote_file(name: &str, url: String, headers: &HeaderMap) -> Result<RemoteFile, HubError> {
    let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
    let protocol = |problem: &str| HubError::Protocol { url: url.clone(), problem: problem.to_owned() };
    let etag = text("x-linked-etag").or_else(|| text("etag")).ok_or_else(|| protocol("no ETag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
    if !is_name(&etag) {
        return Err(protocol(&format!("ETag {etag:?}")));
    }
    let size = text("x-linked-size").or_else(|| text("content-length")).and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| protocol("no size"))?;
    Ok(RemoteFile { name: name.to_owned(), etag, size, url })
}

/// The first byte's position in `Content-Range: bytes 5-9/10`.
fn content_range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

fn check_status(repo: &RepoId, what: &str, url: &str, status: StatusCode) -> Result<(), HubError> {
    match status.as_u16() {
        200..=299 => Ok(()),
        status @ (401 | 403) => Err(HubError::Denied { repo: repo.clone(), status }),
        404 => Err(HubError::NotFound { repo: repo.clone(), what: what.to_owned() }),
        status => Err(HubError::Status { url: url.to_owned(), status }),
    }
}

fn network(url: &str, error: &ureq::Error) -> HubError {
    HubError::Network { url: url.to_owned(), problem: error.to_string() }
}

/// A revision as one part of a URL's path.
fn quoted(revision: &str) -> String {
    revision.replace('/', "%2F")
}
