//! Wrong drivers: that the comparison notices each of them is tested.

/// What a driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// No ticket is ever stale.
    NothingIsStale,
    /// Changes are of nobody.
    ForgetsOwner,
    /// A refused start is taken for an accepted one.
    DeniesRefusals,
    /// No change is ever ended.
    NeverEnds,
    /// Whoever unsubscribes stays.
    StaysSubscribed,
    /// Everybody is told twice.
    SubscribesTwice,
    /// Intervals take their own changes for others'.
    IgnoresNothing,
}
