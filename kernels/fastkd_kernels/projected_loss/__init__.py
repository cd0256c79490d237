"""Loss of a linear projection against a target, without the projection or the residual in memory."""
