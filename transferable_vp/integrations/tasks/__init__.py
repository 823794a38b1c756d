"""Task files for `lmms_eval --include_path`; `python -m transferable_vp.integrations.tasks` prints where they are."""
