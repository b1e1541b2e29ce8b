package outbox

// Unread bounds the payloads that a question about a media reads.
const Unread = unread
