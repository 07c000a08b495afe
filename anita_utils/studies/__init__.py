"""Questions to a trained model that go beyond the paper: one file a question."""
