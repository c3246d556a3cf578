//! From the change stream to the sockets.
