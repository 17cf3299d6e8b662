"""How well a run did: controls, scores and figures."""
