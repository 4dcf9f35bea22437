"""Nothing project-wide: fixtures come from the plugin (framework/pytest_plugin.py), as they do for users."""
