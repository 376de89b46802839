"""The process that launchd runs: sockets to listen on, all connections, reload, drain."""
