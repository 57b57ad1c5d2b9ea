"""Images and labels: Codebirds, folders of a user's own photos, shifted test sets, batches."""
