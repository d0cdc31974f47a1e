//! Bodies as SGLang writes them, and as it reads them.
//!
//! Its nodes take Python's `json.dumps` on both sides, so that is the format here: a blank after
//! each comma and colon, and ASCII only. For reading requests see [`super::parse`]: their errors
//! name fields.

use std::fmt::Write as _;
use std::io;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Serializer as JsonSerializer;
use serde_json::ser::Formatter;
use serde_json::value::RawValue;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Conflict, Endpoint, Field, Invalid, Kind, Prefill, Problem, Rank, Registration, Seat, Shape,
    Value,
};

/// `value` as Python would write it.
pub(super) fn to_text(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    value
        .serialize(&mut JsonSerializer::with_formatter(&mut bytes, Python))
        .expect("these types have texts as keys, and a Vec takes all that is written");
    String::from_utf8(bytes).expect("JSON is text")
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut escaped = String::with_capacity(text.len());
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte @ b' '..=b'~') => escaped.push(byte.into()),
                _ => write!(escaped, "\\u{unit:04x}").expect("a String takes all that is written"),
            }
        }
        w.write_all(escaped.as_bytes())
    }
}

/// The body of `PUT /route`, in the order in which SGLang has the keys; ours come last.
#[derive(Debug, Serialize)]
pub(super) struct RouteBody<'a> {
    attn_tp_size: u32,
    attn_tp_rank: u32,
    attn_cp_size: u32,
    attn_cp_rank: u32,
    attn_dp_size: u32,
    attn_dp_rank: u32,
    pp_size: u32,
    pp_rank: u32,
    system_dp_size: u32,
    system_dp_rank: u32,
    rank_ip: &'a str,
    rank_port: u16,
    page_size: u32,
    kv_cache_dtype: Option<&'a str>,
    kv_layout: Option<&'a str>,
    dsv41_spec_layout: Option<&'a RawValue>,
    load_balance_method: &'static str,
    enable_dsa_cache_layer_split: bool,
    enable_kv_cache_sharding: bool,
    prefill_http_port: Option<u16>,
    decode_allocation_policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_seconds: Option<u64>,
}

impl<'a> RouteBody<'a> {
    /// Fails when the layout of the speculative decoder is not JSON.
    pub(super) fn new(registration: &'a Registration) -> Result<Self, Invalid> {
        let Registration { rank, endpoint, incarnation, lease, prefill } = registration;
        let spec_layout = prefill.spec_layout.as_deref().map(serde_json::from_str).transpose();
        let not_json = |_| Field::SpecLayout.invalid(Problem::NotA(Kind::Object));
        Ok(Self {
            attn_tp_size: prefill.shape.tp,
            attn_tp_rank: rank.tp,
            attn_cp_size: prefill.shape.cp,
            attn_cp_rank: rank.cp,
            attn_dp_size: prefill.shape.dp,
            attn_dp_rank: rank.dp,
            pp_size: prefill.shape.pp,
            pp_rank: rank.pp,
            // Data parallelism is told in one of two ways; a system size of 1 says that it is the
            // other.
            system_dp_size: 1,
            system_dp_rank: 0,
            rank_ip: &endpoint.host,
            rank_port: endpoint.port,
            page_size: prefill.page_tokens,
            kv_cache_dtype: prefill.kv_dtype.as_deref(),
            kv_layout: prefill.kv_layout.as_deref(),
            dsv41_spec_layout: spec_layout.map_err(not_json)?,
            load_balance_method: prefill.policy(),
            enable_dsa_cache_layer_split: prefill.layer_split,
            enable_kv_cache_sharding: prefill.kv_sharding,
            prefill_http_port: prefill.http_port,
            decode_allocation_policy: &prefill.allocation,
            incarnation: *incarnation,
            // A lease of less than a second would lapse before anybody could renew it.
            lease_seconds: lease.map(|lease| lease.as_secs().max(1)),
        })
    }
}

/// What an instance is: the answer to `GET /route` with -1 for each rank. SGLang's decode side
/// takes these keys and no other.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct InfoBody {
    attn_tp_size: u32,
    attn_cp_size: u32,
    dp_size: u32,
    pp_size: u32,
    page_size: Option<u32>,
    kv_cache_dtype: Option<String>,
    follow_bootstrap_room: bool,
    #[serde(default)]
    enable_dsa_cache_layer_split: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dsv41_spec_layout: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_layout: Option<String>,
    #[serde(default = "early")]
    decode_allocation_policy: String,
    #[serde(default)]
    enable_kv_cache_sharding: bool,
    #[serde(default)]
    prefill_http_port: Option<u16>,
    #[serde(flatten, skip_deserializing)]
    mapping: Mapping,
}

/// What a decode node of SGLang keeps in the same record once it has mapped its ranks; empty in an
/// answer.
#[derive(Debug, Default, Serialize)]
struct Mapping {
    target_tp_rank: Option<u32>,
    target_tp_ranks: Option<u32>,
    target_cp_ranks: Option<u32>,
    target_pp_ranks: Option<u32>,
    required_dst_info_num: Option<u32>,
    required_prefill_response_num: Option<u32>,
}

fn early() -> String {
    "early".to_owned()
}

impl From<&Prefill> for InfoBody {
    fn from(prefill: &Prefill) -> Self {
        let raw = |text: &String| RawValue::from_string(text.clone()).ok();
        Self {
            attn_tp_size: prefill.shape.tp,
            attn_cp_size: prefill.shape.cp,
            dp_size: prefill.shape.dp,
            pp_size: prefill.shape.pp,
            page_size: Some(prefill.page_tokens),
            kv_cache_dtype: prefill.kv_dtype.clone(),
            follow_bootstrap_room: prefill.follow_room,
            enable_dsa_cache_layer_split: prefill.layer_split,
            dsv41_spec_layout: prefill.spec_layout.as_ref().and_then(raw),
            kv_layout: prefill.kv_layout.clone(),
            decode_allocation_policy: prefill.allocation.clone(),
            enable_kv_cache_sharding: prefill.kv_sharding,
            prefill_http_port: prefill.http_port,
            mapping: Mapping::default(),
        }
    }
}

impl From<InfoBody> for Prefill {
    fn from(body: InfoBody) -> Self {
        let (cp, tp) = (body.attn_cp_size, body.attn_tp_size);
        Self {
            shape: Shape { dp: body.dp_size, cp, tp, pp: body.pp_size },
            // A server that does not know the page size says null; no page has 0 tokens.
            page_tokens: body.page_size.unwrap_or(0),
            kv_dtype: body.kv_cache_dtype,
            kv_layout: body.kv_layout,
            follow_room: body.follow_bootstrap_room,
            layer_split: body.enable_dsa_cache_layer_split,
            kv_sharding: body.enable_kv_cache_sharding,
            allocation: body.decode_allocation_policy,
            spec_layout: body.dsv41_spec_layout.map(|raw| raw.get().to_owned()),
            http_port: body.prefill_http_port,
        }
    }
}

/// Where a rank listens: the answer to `GET /route` with a rank's numbers.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct SeatBody {
    rank_ip: String,
    rank_port: u16,
}

impl From<&Seat> for SeatBody {
    fn from(seat: &Seat) -> Self {
        Self { rank_ip: seat.endpoint.host.clone(), rank_port: seat.endpoint.port }
    }
}

impl From<SeatBody> for Endpoint {
    fn from(body: SeatBody) -> Self {
        Self { host: body.rank_ip, port: body.rank_port }
    }
}

/// The body of `POST /register_dp_rank`.
#[derive(Debug, Serialize)]
pub(super) struct PlaceBody {
    pub(super) bootstrap_room: u64,
    pub(super) dp_rank: u32,
}

/// The body of `POST /query_dp_ranks` and of `POST /unregister_dp_ranks`.
#[derive(Debug, Serialize)]
pub(super) struct RoomsBody {
    bootstrap_rooms: Vec<u64>,
}

impl RoomsBody {
    pub(super) fn new(rooms: &[RoomId]) -> Self {
        Self { bootstrap_rooms: rooms.iter().map(|room| room.0).collect() }
    }
}

/// The body of `POST /unregister_route`.
#[derive(Debug, Serialize)]
pub(super) struct LeaveBody {
    dp_rank: u32,
    attn_cp_rank: u32,
    attn_tp_rank: u32,
    pp_rank: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<u64>,
}

impl LeaveBody {
    pub(super) fn new(rank: Rank, incarnation: Option<u64>) -> Self {
        let Rank { dp, cp, tp, pp } = rank;
        Self { dp_rank: dp, attn_cp_rank: cp, attn_tp_rank: tp, pp_rank: pp, incarnation }
    }
}

/// Data-parallel ranks by room: the answer to `POST /query_dp_ranks`. Each room is there once.
#[derive(Debug)]
pub(super) struct DpRanksBody(pub(super) Vec<(RoomId, u32)>);

impl Serialize for DpRanksBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (room, dp_rank) in &self.0 {
            map.serialize_entry(&room.0.to_string(), dp_rank)?;
        }
        map.end()
    }
}

/// The header of a refusal, for programs: which field, and the values of both sides.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ConflictHeader {
    field: String,
    registered: serde_json::Value,
    offered: serde_json::Value,
}

impl From<&Conflict> for ConflictHeader {
    fn from(conflict: &Conflict) -> Self {
        let field = conflict.field.name().to_owned();
        let (registered, offered) = (to_json(&conflict.registered), to_json(&conflict.offered));
        Self { field, registered, offered }
    }
}

impl ConflictHeader {
    /// `None` for a field that this version does not know.
    pub(super) fn conflict(self) -> Option<Conflict> {
        let field = Field::from_name(&self.field)?;
        let (registered, offered) = (from_json(&self.registered), from_json(&self.offered));
        Some(Conflict { field, registered, offered })
    }
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Absent => serde_json::Value::Null,
        Value::Flag(flag) => (*flag).into(),
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
    }
}

fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Absent,
        serde_json::Value::Bool(flag) => Value::Flag(*flag),
        serde_json::Value::String(text) => Value::Text(text.clone()),
        other => other.as_u64().map_or_else(|| Value::Text(other.to_string()), Value::Number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_written_as_python_writes_it() {
        let text = "a\"\\/\n\t\u{1}\u{7f}é\u{1f600}";
        assert_eq!(to_text(&text), r#""a\"\\/\n\t\u0001\u007f\u00e9\ud83d\ude00""#);
        assert_eq!(to_text(&[1, 2]), "[1, 2]");
        assert_eq!(
            to_text(&DpRanksBody(vec![(RoomId(7), 3), (RoomId(0), 1)])),
            r#"{"7": 3, "0": 1}"#
        );
    }

    #[test]
    fn a_conflict_crosses_as_it_is() {
        let values =
            [Value::Absent, Value::Flag(true), Value::Number(u64::MAX), Value::Text("é".into())];
        for registered in values {
            let conflict =
                Conflict { field: Field::KvDtype, registered, offered: Value::Number(0) };
            let text = to_text(&ConflictHeader::from(&conflict));
            let back: ConflictHeader = serde_json::from_str(&text).unwrap();
            assert!(text.is_ascii());
            assert_eq!(back.conflict(), Some(conflict));
        }
    }
}
