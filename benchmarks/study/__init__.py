"""What each limit costs: real workers train, and the document's tables are made."""
