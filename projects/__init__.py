"""The lab: people, projects from proposal to announcement, and the public record. The database belongs to it."""
