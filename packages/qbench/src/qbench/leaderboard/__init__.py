"""The leaderboard: claims beside what was measured here, ranked and shown on static pages."""
