//! Requests, from bytes to types. Whatever is wrong is said with the field's name (W4).
//!
//! As lenient as SGLang where its nodes need it: numbers may be texts of digits, keys that nobody
//! knows are passed over.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Endpoint, Field, Invalid, Kind, Prefill, Problem, Rank, Registration, Shape,
};

/// The fields of a JSON object.
#[derive(Debug)]
pub(super) struct Fields<'a>(HashMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, Invalid> {
        let not_json = |_| Field::Body.invalid(Problem::NotA(Kind::Object));
        serde_json::from_slice(body).map(Self).map_err(not_json)
    }

    /// A field's text of JSON. One that is null is not there.
    fn find(&self, field: Field) -> Option<&'a RawValue> {
        self.0.get(field.name()).copied().filter(|raw| raw.get() != "null")
    }

    fn demand(&self, field: Field) -> Result<&'a RawValue, Invalid> {
        self.find(field).ok_or(field.invalid(Problem::Missing))
    }

    fn number<T: TryFrom<u64> + Largest>(&self, field: Field) -> Result<T, Invalid> {
        number(field, self.demand(field)?)
    }

    fn number_if_any<T: TryFrom<u64> + Largest>(&self, field: Field) -> Result<Option<T>, Invalid> {
        self.find(field).map(|raw| number(field, raw)).transpose()
    }

    fn text_if_any(&self, field: Field) -> Result<Option<String>, Invalid> {
        self.find(field).map(|raw| typed(field, Kind::Text, raw)).transpose()
    }

    fn flag(&self, field: Field) -> Result<bool, Invalid> {
        self.find(field).map_or(Ok(false), |raw| typed(field, Kind::Flag, raw))
    }

    /// A registration: the body of `PUT /route`.
    pub(super) fn registration(&self) -> Result<Registration, Invalid> {
        let (dp_size, dp) = self.data_parallel()?;
        let shape = Shape {
            dp: dp_size,
            cp: self.number(Field::CpSize)?,
            tp: self.number(Field::TpSize)?,
            pp: self.number(Field::PpSize)?,
        };
        let (cp, tp) = (self.number(Field::CpRank)?, self.number(Field::TpRank)?);
        let host = typed(Field::RankIp, Kind::Text, self.demand(Field::RankIp)?)?;
        Ok(Registration {
            rank: Rank { dp, cp, tp, pp: self.number(Field::PpRank)? },
            endpoint: Endpoint { host, port: self.number(Field::RankPort)? },
            incarnation: self.number_if_any(Field::Incarnation)?,
            lease: self.lease()?,
            prefill: self.prefill(shape)?,
        })
    }

    /// Size and rank. Either the attention is data parallel or the whole engine; all fields must be
    /// there.
    fn data_parallel(&self) -> Result<(u32, u32), Invalid> {
        let attention = (self.number(Field::AttnDpSize)?, self.number(Field::AttnDpRank)?);
        let system = (self.number(Field::SystemDpSize)?, self.number(Field::SystemDpRank)?);
        Ok(if system.0 == 1 { attention } else { system })
    }

    fn lease(&self) -> Result<Option<Duration>, Invalid> {
        match self.number_if_any::<u64>(Field::LeaseSeconds)? {
            Some(0) => Err(Field::LeaseSeconds.invalid(Problem::Zero)),
            seconds => Ok(seconds.map(Duration::from_secs)),
        }
    }

    fn prefill(&self, shape: Shape) -> Result<Prefill, Invalid> {
        if !self.0.contains_key(Field::KvDtype.name()) {
            return Err(Field::KvDtype.invalid(Problem::Missing));
        }
        let plain = Prefill::new(shape, self.number(Field::PageSize)?);
        Ok(Prefill {
            kv_dtype: self.text_if_any(Field::KvDtype)?,
            kv_layout: self.text_if_any(Field::KvLayout)?,
            follow_room: self.follow_room()?,
            layer_split: self.flag(Field::LayerSplit)?,
            kv_sharding: self.flag(Field::KvSharding)?,
            allocation: self.text_if_any(Field::Allocation)?.unwrap_or(plain.allocation),
            spec_layout: self.spec_layout()?,
            http_port: self.number_if_any(Field::HttpPort)?,
            ..plain
        })
    }

    /// Not saying anything means to follow; null does not.
    fn follow_room(&self) -> Result<bool, Invalid> {
        let said = self.0.contains_key(Field::LoadBalance.name());
        let policy = self.text_if_any(Field::LoadBalance)?;
        Ok(!said || policy.is_some_and(|policy| policy == "follow_bootstrap_room"))
    }

    /// Kept as it came: it is opaque, and goes out again byte for byte.
    fn spec_layout(&self) -> Result<Option<String>, Invalid> {
        let Some(raw) = self.find(Field::SpecLayout) else { return Ok(None) };
        let not_object = Field::SpecLayout.invalid(Problem::NotA(Kind::Object));
        let is_object = raw.get().starts_with('{');
        if is_object { Ok(Some(raw.get().to_owned())) } else { Err(not_object) }
    }

    /// The body of `POST /register_dp_rank`.
    pub(super) fn placed_room(&self) -> Result<(RoomId, u32), Invalid> {
        Ok((RoomId(self.number(Field::BootstrapRoom)?), self.number(Field::DpRank)?))
    }

    /// The body of `POST /query_dp_ranks` and `POST /unregister_dp_ranks`. Each room once.
    pub(super) fn rooms(&self) -> Result<Vec<RoomId>, Invalid> {
        let field = Field::BootstrapRooms;
        let list: Vec<&RawValue> = typed(field, Kind::List, self.demand(field)?)?;
        let mut seen = std::collections::HashSet::new();
        let rooms = list.into_iter().map(|raw| number(field, raw).map(RoomId));
        rooms.filter(|room| room.as_ref().map_or(true, |room| seen.insert(*room))).collect()
    }

    /// The body of `POST /unregister_route`.
    pub(super) fn leaving(&self) -> Result<(Rank, Option<u64>), Invalid> {
        let rank = Rank {
            dp: self.number(Field::DpRank)?,
            cp: self.number(Field::CpRank)?,
            tp: self.number(Field::TpRank)?,
            pp: self.number(Field::PpRank)?,
        };
        Ok((rank, self.number_if_any(Field::Incarnation)?))
    }
}

fn typed<'a, T: Deserialize<'a>>(
    field: Field,
    kind: Kind,
    raw: &'a RawValue,
) -> Result<T, Invalid> {
    serde_json::from_str(raw.get()).map_err(|_| field.invalid(Problem::NotA(kind)))
}

/// The largest number of a type.
trait Largest {
    const LARGEST: u64;
}

impl Largest for u16 {
    const LARGEST: u64 = Self::MAX as u64;
}

impl Largest for u32 {
    const LARGEST: u64 = Self::MAX as u64;
}

impl Largest for u64 {
    const LARGEST: u64 = Self::MAX;
}

/// A number, or a text of one.
fn number<T: TryFrom<u64> + Largest>(field: Field, raw: &RawValue) -> Result<T, Invalid> {
    let digits = match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => text.trim().parse().ok(),
        Err(_) => serde_json::from_str::<u64>(raw.get()).ok(),
    };
    let value = digits.ok_or(field.invalid(Problem::NotA(Kind::Number)))?;
    T::try_from(value).map_err(|_| field.invalid(Problem::TooLarge { value, most: T::LARGEST }))
}

/// What `GET /route` asks for.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum RouteQuery {
    /// What the instance is.
    Prefill,
    /// Where a rank is, and the words that it was asked for with. `None` for a rank that no
    /// instance has.
    Seat { rank: Option<Rank>, words: [String; 4] },
}

/// Why a query is none.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum BadQuery {
    /// A number is missing.
    Missing,
    /// One is no number.
    Invalid(Invalid),
}

impl RouteQuery {
    const FIELDS: [Field; 4] =
        [Field::QueryDpRank, Field::QueryCpRank, Field::QueryTpRank, Field::QueryPpRank];

    pub(super) fn parse(query: &str) -> Result<Self, BadQuery> {
        let words = Self::FIELDS.map(|field| first_of(query, field.name()));
        if words.iter().any(String::is_empty) {
            return Err(BadQuery::Missing);
        }
        let mut numbers = [0; 4];
        for ((number, word), field) in numbers.iter_mut().zip(&words).zip(Self::FIELDS) {
            let not_a_number = field.invalid(Problem::NotA(Kind::Number));
            *number = word.trim().parse().map_err(|_| BadQuery::Invalid(not_a_number))?;
        }
        if numbers == [-1; 4] {
            return Ok(Self::Prefill);
        }
        Ok(Self::Seat { rank: rank(numbers), words })
    }
}

/// The first value of a key; empty when there is none, which is the same to SGLang.
fn first_of(query: &str, name: &str) -> String {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn rank([dp, cp, tp, pp]: [i64; 4]) -> Option<Rank> {
    let axis = |number: i64| u32::try_from(number).ok();
    Some(Rank { dp: axis(dp)?, cp: axis(cp)?, tp: axis(tp)?, pp: axis(pp)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(numbers: &str) -> Result<RouteQuery, BadQuery> {
        let names = RouteQuery::FIELDS.map(Field::name);
        let pairs: Vec<_> = names.iter().zip(numbers.split(',')).collect();
        let pairs = pairs.iter().map(|(name, number)| format!("{name}={number}"));
        RouteQuery::parse(&pairs.collect::<Vec<_>>().join("&"))
    }

    #[test]
    fn a_query_is_for_the_instance_or_for_a_rank() {
        assert_eq!(query("-1,-1,-1,-1"), Ok(RouteQuery::Prefill));
        let Ok(RouteQuery::Seat { rank, words }) = query("1,0,+2,03") else { panic!("no rank") };
        // A plus sign of a query is a blank.
        assert_eq!(rank, Some(Rank { dp: 1, cp: 0, tp: 2, pp: 3 }));
        assert_eq!(words, ["1", "0", " 2", "03"]);
        assert!(matches!(query("-1,0,0,0"), Ok(RouteQuery::Seat { rank: None, .. })));
        assert_eq!(query("1,,0,0"), Err(BadQuery::Missing));
        assert_eq!(RouteQuery::parse(""), Err(BadQuery::Missing));
        let invalid = Field::QueryTpRank.invalid(Problem::NotA(Kind::Number));
        assert_eq!(query("0,0,x,0"), Err(BadQuery::Invalid(invalid)));
    }

    #[test]
    fn a_number_may_be_a_text_but_neither_a_fraction_nor_a_truth() {
        let room = |json: &str| {
            let body = format!("{{\"bootstrap_room\": {json}, \"dp_rank\": 0}}");
            Fields::parse(body.as_bytes()).and_then(|fields| fields.placed_room())
        };
        assert_eq!(room("7"), Ok((RoomId(7), 0)));
        assert_eq!(room("\" 18446744073709551615\""), Ok((RoomId(u64::MAX), 0)));
        for wrong in
            ["-1", "1.0", "true", "[]", "{}", "\"\"", "\"x\"", "1e3", "18446744073709551616"]
        {
            let invalid = Field::BootstrapRoom.invalid(Problem::NotA(Kind::Number));
            assert_eq!(room(wrong), Err(invalid), "{wrong}");
        }
        assert_eq!(room("null"), Err(Field::BootstrapRoom.invalid(Problem::Missing)));
    }

    proptest! {
        #[test]
        fn w4_no_body_and_no_query_panics(body: Vec<u8>, query: String) {
            let _ = RouteQuery::parse(&query);
            if let Ok(fields) = Fields::parse(&body) {
                let _ = (fields.registration(), fields.rooms(), fields.placed_room(), fields.leaving());
            }
        }
    }
}
