"""What the nodes of a fleet share through Redis or Valkey: all is true without it as well, only later or dearer."""
