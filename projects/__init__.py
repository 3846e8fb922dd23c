"""The lab: people, projects from proposal to announcement, and the public record. Owns the database."""
