"""Language models: fetched, loaded, given adapters, and read as two methods (`LanguageModel`)."""
