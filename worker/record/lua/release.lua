-- Ends the lease of a running task whose owner is known to be dead, so that it can be claimed now.
--
-- KEYS[1]  ns:{id}:task  hash  lease_until
-- ARGV     owner
-- gives    1, or 0 when the task is another's
local held = redis.call('HMGET', KEYS[1], 'owner', 'status')
if held[1] ~= ARGV[1] or held[2] ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'lease_until', '0')
return 1
