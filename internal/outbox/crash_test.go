package outbox_test

const childVariable = "OUTBOX_CHILD"

func beWorker() {}
