package expect

// SetTimeout has an expectation that is installed expire after a number of seconds.
func (c *Client) SetTimeout(e Expectation, seconds uint32) error {
	c.begin()
	c.request(msgExpNew, 0, e.Src)
	c.out.expectation(e)
	c.out.Uint32(ctaExpectTimeout, seconds)
	c.end()
	r, err := c.exchange()
	if err == nil && r.errno[0] != 0 {
		err = r.errno[0]
	}
	return err
}
