package events

// Published is the version under which the CMS published the event; older
// versions of a media never replace newer ones.
func (e MediaUploaded) Published() Version { return e.Version }

// Published is the version under which the CMS published the event.
func (e MediaRenamed) Published() Version { return e.Version }

// Published is the version under which the CMS published the event.
func (e MediaDeleted) Published() Version { return e.Version }
