"""Nothing project-wide: fixtures come from the plugin (framework/pytest_plugin), as they do for users."""
