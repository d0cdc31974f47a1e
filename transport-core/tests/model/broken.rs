//! Mistakes that an implementer could make, each of which must break a property: a model that has
//! never failed proves little.

/// One mistake in a machine's wiring, or a machine wrapped so that it behaves like a wrong one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Broken {
    /// A fabric that cannot refuse writes says that it has fenced them.
    FencesNothing,
    /// When a drain takes too long, the pages come back without the path being torn down.
    GivesUpDraining,
    /// The prefill side says that it is drained as soon as it fails.
    SaysDrainedAtOnce,
    /// A delivery is announced when it is posted, not when it has landed.
    AnnouncesEarly,
    /// A repeated grant makes a machine again, though how the first one ended is known.
    ForgetsGrants,
    /// The first writer that is ready decides for all.
    DecidesOnFirst,
    /// A rank that has everything does not ask the others.
    AsksNobody,
    /// A leg that failed leaves the others alone.
    FailsAlone,
    /// A rank whose scheduler cancels fails, though it has said that it is ready.
    BreaksItsWord,
    /// The decode side confirms when everything has arrived, before the room is decided.
    ConfirmsEarly,
    /// A decode machine's deadlines are not watched.
    DecodeWaitsForever,
    /// A prefill machine's deadlines are not watched.
    PrefillWaitsForever,
    /// A source is given back when its room fails, whatever the fabric still reads.
    ReturnsSources,
}
