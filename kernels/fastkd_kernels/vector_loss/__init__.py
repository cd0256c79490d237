"""The projected loss on vector channels."""
