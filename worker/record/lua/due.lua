-- Takes pushes that are due. Whoever has them has a while to try; then they are due again.
--
-- KEYS[1]  ns:pushes  sorted set  scores of what is taken moved on
-- ARGV     most, seconds
-- gives    members
local now = now_s()
local found = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, member in ipairs(found) do
  redis.call('ZADD', KEYS[1], string.format('%.6f', now + ARGV[2]), member)
end
return found
