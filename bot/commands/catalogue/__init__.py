"""`/catalogue …`: commands and forms about recipes and datasets."""
