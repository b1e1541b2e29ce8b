// Package bucket acts on one customer's bucket through the customer's own IAM
// role: it assumes the role, builds keys, puts, copies, deletes and lists
// objects, and sorts every error of AWS into a failure.
//
// It calls nothing beyond what the manual's example policy grants, and writes,
// copies and deletes nothing outside the integration's prefix.
package bucket
