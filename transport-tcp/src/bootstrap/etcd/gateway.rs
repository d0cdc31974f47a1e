//! etcd's HTTP gateway: its v3 API as JSON, so that no gRPC is needed.
//!
//! Keys and values are base64 there, and 64-bit numbers are texts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use transport_core::disagg::directory::DirectoryError;
use ureq::Agent;
use ureq::http::StatusCode;

use super::super::client::failed;

/// Longest answer that is read, in bytes: the largest instance.
const MAX_ANSWER: u64 = 64 << 20;

/// The number of a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Lease(i64);

/// A key that was found.
#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    #[serde(default, deserialize_with = "text")]
    pub(super) value: String,
    #[serde(deserialize_with = "number")]
    pub(super) create_revision: u64,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: u64,
}

/// A step of a transaction.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Delete { key: String },
    Get { key: String },
    Put { key: String, value: String, lease: Option<Lease> },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RangeAnswer {
    kvs: Vec<KeyValue>,
    #[serde(deserialize_with = "number")]
    count: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TxnAnswer {
    succeeded: bool,
    responses: Vec<StepAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StepAnswer {
    response_range: RangeAnswer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LeaseAnswer {
    #[serde(rename = "ID", deserialize_with = "number")]
    id: u64,
    #[serde(rename = "TTL", deserialize_with = "number")]
    ttl: u64,
}

#[derive(Debug, Deserialize)]
struct KeepAliveAnswer {
    result: LeaseAnswer,
}

/// A cluster.
#[derive(Debug)]
pub(super) struct Gateway {
    agent: Agent,
    endpoints: Vec<String>,
}

impl Gateway {
    pub(super) fn new(endpoints: &[String], timeout: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .proxy(None)
            .build()
            .new_agent();
        Self { agent, endpoints: endpoints.to_vec() }
    }

    /// All keys that begin so.
    pub(super) fn range(&self, prefix: &str) -> Result<Vec<KeyValue>, DirectoryError> {
        let answer: RangeAnswer = self.call("/v3/kv/range", &from_prefix(prefix))?;
        Ok(answer.kvs)
    }

    /// How many keys begin so.
    pub(super) fn count(&self, prefix: &str) -> Result<u64, DirectoryError> {
        let mut request = from_prefix(prefix);
        request["count_only"] = true.into();
        Ok(self.call::<RangeAnswer>("/v3/kv/range", &request)?.count)
    }

    /// Carries out all steps at once; the value of each that gets one.
    pub(super) fn transact(
        &self,
        steps: &[Operation],
    ) -> Result<Vec<Option<String>>, DirectoryError> {
        let steps: Vec<_> = steps.iter().map(Operation::to_json).collect();
        let answer: TxnAnswer = self.call("/v3/kv/txn", &json!({ "success": steps }))?;
        let value = |mut step: StepAnswer| step.response_range.kvs.pop().map(|found| found.value);
        Ok(answer.responses.into_iter().map(value).collect())
    }

    /// Carries out a step if its key was last written at `revision`, 0 being never. Returns
    /// whether.
    pub(super) fn put_if(&self, step: &Operation, revision: u64) -> Result<bool, DirectoryError> {
        let unchanged = json!({
            "result": "EQUAL", "target": "MOD", "key": encoded(step.key()),
            "mod_revision": revision.to_string(),
        });
        let request = json!({ "compare": [unchanged], "success": [step.to_json()] });
        Ok(self.call::<TxnAnswer>("/v3/kv/txn", &request)?.succeeded)
    }

    /// A new lease, of a second at least.
    pub(super) fn grant(&self, time: Duration) -> Result<Lease, DirectoryError> {
        let request = json!({ "TTL": time.as_secs().max(1).to_string() });
        let answer: LeaseAnswer = self.call("/v3/lease/grant", &request)?;
        i64::try_from(answer.id).map(Lease).map_err(|_| DirectoryError::Malformed { status: 200 })
    }

    /// Renews a lease. `false`: it has lapsed.
    pub(super) fn keep_alive(&self, lease: Lease) -> Result<bool, DirectoryError> {
        let request = json!({ "ID": lease.0.to_string() });
        let answer: KeepAliveAnswer = self.call("/v3/lease/keepalive", &request)?;
        Ok(answer.result.ttl > 0)
    }

    /// Asks each member until one answers.
    fn call<T: for<'a> Deserialize<'a>>(
        &self,
        path: &str,
        request: &Value,
    ) -> Result<T, DirectoryError> {
        let mut result = Err(DirectoryError::Unreachable { errno: 0 });
        for endpoint in &self.endpoints {
            result = self.call_one(endpoint, path, request);
            if !matches!(result, Err(DirectoryError::Unreachable { .. })) {
                break;
            }
        }
        result
    }

    fn call_one<T: for<'a> Deserialize<'a>>(
        &self,
        endpoint: &str,
        path: &str,
        request: &Value,
    ) -> Result<T, DirectoryError> {
        let url = format!("http://{endpoint}{path}");
        let sent = self.agent.post(url).content_type("application/json").send(request.to_string());
        let mut response = sent.map_err(|error| failed(&error, 0))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|error| failed(&error, status))?;
        match response.status() {
            StatusCode::OK => {
                serde_json::from_slice(&body).map_err(|_| DirectoryError::Malformed { status })
            }
            // A member that has lost the others.
            StatusCode::SERVICE_UNAVAILABLE => Err(DirectoryError::Unreachable { errno: 0 }),
            _ => Err(DirectoryError::Malformed { status }),
        }
    }
}

/// The keys in an answer, for fuzzing.
#[cfg(feature = "fuzzing")]
pub(super) fn found(answer: &[u8]) -> Option<Vec<KeyValue>> {
    let _ = serde_json::from_slice::<TxnAnswer>(answer);
    let _ = serde_json::from_slice::<KeepAliveAnswer>(answer);
    serde_json::from_slice::<RangeAnswer>(answer).ok().map(|answer| answer.kvs)
}

impl Operation {
    fn key(&self) -> &str {
        match self {
            Self::Delete { key } | Self::Get { key } | Self::Put { key, .. } => key,
        }
    }

    fn to_json(&self) -> Value {
        let key = encoded(self.key());
        match self {
            Self::Delete { .. } => json!({ "request_delete_range": { "key": key } }),
            Self::Get { .. } => json!({ "request_range": { "key": key } }),
            Self::Put { value, lease, .. } => {
                let lease = lease.map_or(0, |lease| lease.0).to_string();
                json!({ "request_put": { "key": key, "value": encoded(value), "lease": lease } })
            }
        }
    }
}

/// All keys that begin so: up to the first that does not, which ends with the byte after the last.
fn from_prefix(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // Our prefixes end with a slash.
        *last += 1;
    }
    json!({ "key": encoded(prefix), "range_end": STANDARD.encode(end) })
}

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// Base64 of text. What is not text was not written here, and reads as nothing.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let bytes = STANDARD.decode(String::deserialize(deserializer)?).unwrap_or_default();
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
