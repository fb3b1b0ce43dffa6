//! The six rooms between a float graph and an executable integer plan.
