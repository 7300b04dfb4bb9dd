"""Bundle to answers, without torch: preprocessing, engines and the session behind the SDK."""
