"""Topics: ordered logs of events with generations and offsets, their folds, and the journal that keeps them."""
